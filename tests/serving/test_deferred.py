"""A service of a model with deferred layers, and of a captioner, answers with what the model
gives."""

import json
import shutil

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.index.build import build
from edje_jax.models.token_formats import unpack
from edje_jax.runtimes import scoring
from edje_jax.serving.documents import Images
from edje_jax.serving.jobs import CaptionsJob, RerankJob, SearchJob
from edje_jax.serving.service import Service

TEXTS = ["a red circle", "a small striped green star left of a large dotted blue square"]


@pytest.fixture(
    scope="module", params=["deferred", pytest.param("captioner", marks=pytest.mark.extra)]
)
def encodes_captions(trained, captioner, indexed, tmp_path_factory, request) -> Service:
    """Service of the same images with a model that reads captions before they meet images: the
    trained one, as if its first layer were deferred, or a captioner."""
    folder, model = tmp_path_factory.mktemp(request.param), captioner
    if request.param == "deferred":
        model = folder / "model"
        shutil.copytree(trained / "model", model)
        config = json.loads((model / "config.json").read_text())
        config["joint_encoder"]["deferred_layers"] = 1
        (model / "config.json").write_text(json.dumps(config))
    reranker = Reranker.from_pretrained(model, precision="float32")
    source = BlipJson(str(indexed.parent / "set.json"))
    assert build(reranker.runtime, reranker.stamp, source, "blip:set", folder / "index")
    return Service(reranker, ImageIndex.open(folder / "index"))


def test_every_kind_of_request(encodes_captions, service):
    reranker, index = encodes_captions.reranker, encodes_captions.index
    # A captioner's scores are differences of sums of many nats.
    images, close = len(index), 1e-3 if reranker.config.captioner else 1e-5
    stored = np.asarray(unpack(index.tokens[np.arange(images)]), np.float32)
    expected = reranker.score_matrix(TEXTS, stored)
    encodes_captions.warm(ks=(images,))
    programs = (scoring.score, scoring.encode_captions, scoring.gather_rows)
    warm = [program._cache_size() for program in programs]

    for row, answer in zip(
        expected, encodes_captions.run([SearchJob(text, images) for text in TEXTS]), strict=True
    ):
        np.testing.assert_allclose(answer.found.logits, row[answer.found.rows], atol=close)

    side = reranker.config.image.size
    sent = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    fresh = reranker.score_matrix(TEXTS, reranker.runtime.encode_images(sent).tokens)
    jobs = [RerankJob(text, Images({0: 4, 2: 7}, {1: sent[0], 3: sent[1]})) for text in TEXTS]
    for number, found in enumerate(encodes_captions.run(jobs)):
        wanted = [expected[number, 4], fresh[number, 0], expected[number, 7], fresh[number, 1]]
        np.testing.assert_allclose(found.logits, wanted, atol=close)
        np.testing.assert_array_equal(found.combined, found.logits)

    (answer,) = encodes_captions.run([CaptionsJob(3, 5)])
    captions = [index.store.captions[row][1] for row in answer.found.rows]
    wanted = reranker.score_matrix(captions, stored[3:4])[:, 0]
    np.testing.assert_allclose(answer.found.logits, wanted, atol=close)

    assert [program._cache_size() for program in programs] == warm
    (other,) = service.run([SearchJob(TEXTS[0], images)])
    assert np.abs(other.found.logits - expected[0][other.found.rows]).max() > 1e-3
