"""An index of a model with deferred layers keeps what those make of a picture's tokens."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.data.sources.shapes import Shapes
from edje_jax.models.token_formats import pack, unpack
from edje_jax.retrieval.build import build
from edje_jax.retrieval.reranker import sigmoid
from edje_jax.retrieval.store import BadStore

PICTURES = 12
TEXTS = ["a red circle", "a small striped green star left of a large dotted blue square", "ring"]


class Some(Shapes):
    """The first few scenes."""

    def __len__(self) -> int:
        return PICTURES


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    """The trained model as if its first layer were deferred."""
    folder = tmp_path_factory.mktemp("deferred") / "model"
    shutil.copytree(trained / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    config["joint_encoder"]["deferred_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def reranker(model) -> Reranker:
    return Reranker.from_pretrained(model)


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_search_scores_equally_rounded_states(reranker, dtype, tmp_path, capsys):
    source = Some("val")
    assert build(reranker, source, "shapes:val", tmp_path / "index", token_dtype=dtype)
    tokens = reranker.encode_images([source.image(i) for i in range(PICTURES)])
    rounded = np.asarray(unpack(pack(tokens, dtype)), np.float32)
    expected = sigmoid(reranker.score_matrix(TEXTS, rounded))
    index = ImageIndex.open(tmp_path / "index")
    found = reranker.search(index, TEXTS, k=PICTURES, top_k=PICTURES)
    place = {source.image_id(i): i for i in range(PICTURES)}
    for row, results in zip(expected, found, strict=True):
        scores = np.array([r["score"] for r in results])
        assert sorted(place[r["id"]] for r in results) == list(range(PICTURES))
        np.testing.assert_allclose(scores, [row[place[r["id"]]] for r in results], atol=1e-5)
    edje.main(["index", "info", str(tmp_path / "index")])
    assert "after 1 deferred layers" in " ".join(capsys.readouterr().out.split())


def test_the_same_weights_without_deferred_layers_are_another_model(reranker, trained, tmp_path):
    build(reranker, Some("val"), "shapes:val", tmp_path / "index")
    index = ImageIndex.open(tmp_path / "index")
    with pytest.raises(BadStore, match="another model"):
        Reranker.from_pretrained(trained).search(index, TEXTS)


def test_states_take_the_place_of_tokens_byte_for_byte(reranker, trained):
    pictures = [Shapes("val").image(i) for i in range(3)]
    states = reranker.encode_images(pictures)
    tokens = Reranker.from_pretrained(trained).encode_images(pictures)
    assert states.shape == tokens.shape and np.abs(states - tokens).max() > 1e-2
