"""A model with a similarity prior and a calibration: its folder, JAX, PyTorch and ONNX agree.

Covers models/heads/similarity_prior.py and weights/calibration.py.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder
from transformers import AutoModel

from edje_jax.cli.convert import convert
from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.config.model import SimilarityPrior
from edje_jax.evaluation.scores import add_cosines, probability
from edje_jax.search.reranker import Reranker
from edje_jax.weights import edje
from edje_jax.weights.calibration import read_calibration, write_calibration
from edje_jax.weights.folder import load_model, save_model
from edje_jax.weights.onnx import run
from edje_jax.weights.published import save_published
from edje_jax.weights.tensors import Safetensors
from edje_jax.weights.torch.modeling_edje import EdjeModel

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
PRIOR = "similarity_prior.safetensors"
CAPTIONS = ["a dog", "two cats, on a mat", "x"]
CALIBRATION = Calibration(0.4, 2.5, -1.5, {"data": "shapes:val", "min_score": 0.25})


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The published checkpoint as a model folder with a deferred layer."""
    out = tmp_path_factory.mktemp("models") / "plain"
    source = TINY / "compressed.pth"
    convert(str(source), str(out), "edje", str(TINY / "siglip"), str(TINY / "bert"))
    config = json.loads((out / "config.json").read_text())
    config["joint_encoder"]["deferred_layers"] = 1
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.fixture(scope="module")
def folder(plain, tmp_path_factory) -> Path:
    """A model folder with a prior of random weights and a calibration, else as `plain`."""
    model = load_model(str(plain))
    config = dataclasses.replace(model.config, similarity_prior=SimilarityPrior(0.1, 0.05))
    rng = np.random.default_rng(0)
    shapes = edje.expected_params(config)["joint_encoder"]["similarity_prior"]
    prior = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    joint = {**model.params["joint_encoder"], "similarity_prior": prior}
    params = {**model.params, "joint_encoder": joint}
    out = tmp_path_factory.mktemp("models") / "prior"
    out.mkdir()
    made = dataclasses.replace(model, config=config, params=params, calibration=CALIBRATION)
    save_model(out, made, "A card.\n")
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Paths of three images of noise."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for i in range(3):
        noise = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3)]


@pytest.fixture(scope="module")
def similarity() -> np.ndarray:
    return np.array([0.02, 0.17, 0.1], np.float32)


def test_a_folder_keeps_the_prior_in_a_file_of_its_own(folder, plain, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 4
    assert config["similarity_prior"] == {"mean": 0.1, "deviation": 0.05}
    published = [set(Safetensors([one / "model.safetensors"])) for one in (folder, plain)]
    assert published[0] == published[1]
    assert len(Safetensors([folder / PRIOR])) == 4
    again = load_model(str(folder))
    assert again.config.similarity_prior == SimilarityPrior(0.1, 0.05)
    assert again.calibration == CALIBRATION
    copy = tmp_path / "copy"
    copy.mkdir()
    save_model(copy, again, "A card.\n")
    for name in (PRIOR, "model.safetensors", "calibration.json"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    # Without either, a folder is what it was before there were any.
    config = json.loads((plain / "config.json").read_text())
    assert "similarity_prior" not in config
    assert not (plain / PRIOR).exists() and not (plain / "calibration.json").exists()
    assert load_model(str(plain)).calibration is UNTUNED


def test_a_missing_file_of_the_prior_is_named(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / PRIOR).unlink()
    with pytest.raises(Exception, match=PRIOR):
        load_model(str(broken))


@pytest.mark.parametrize(
    "content",
    ['{"temperature": 1.0}', "[]", '{"similarity_weight": 0, "temperature": -1, "bias": 0}'],
)
def test_a_damaged_calibration_is_named_with_its_remedy(content, tmp_path):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match=r"calibration\.json"):
        read_calibration(tmp_path)
    write_calibration(tmp_path, CALIBRATION)
    assert read_calibration(tmp_path) == CALIBRATION


def test_a_pair_is_scored_with_its_cosine(folder, images, similarity):
    reranker = Reranker.from_pretrained(folder)
    tokens = reranker.encode_images(images)
    with pytest.raises(ValueError, match=r"has a similarity prior.* give similarities"):
        reranker.score(CAPTIONS, tokens)
    one, other = (reranker.score(CAPTIONS, tokens, similarity + x) for x in (0.0, 0.1))
    assert np.abs(one - other).min() > 1e-3
    matrix = reranker.score_matrix(CAPTIONS, tokens, np.tile(similarity, (3, 1)))
    np.testing.assert_allclose(np.diag(matrix), one, atol=1e-5)
    # `predict` and `rank` find the cosines themselves.
    cosines = (reranker.embed_texts(CAPTIONS) * reranker.embed_images(images)).sum(axis=1)
    logits = reranker.score(CAPTIONS, tokens, cosines)
    pairs = list(zip(CAPTIONS, images, strict=True))
    np.testing.assert_allclose(reranker.predict(pairs, raw_scores=True), logits, atol=1e-5)
    scores = 1 / (1 + np.exp(-((logits + 0.4 * cosines) / 2.5 - 1.5)))
    np.testing.assert_allclose(reranker.predict(pairs), scores, atol=1e-6)
    ranked = reranker.rank(CAPTIONS[0], images[:1])
    assert ranked[0]["score"] == pytest.approx(scores[0], abs=1e-6)


def test_a_fresh_prior_changes_nothing(plain, folder, images, similarity):
    model = load_model(str(folder))
    out = model.params["joint_encoder"]["similarity_prior"]["out"]
    joint = {**model.params["joint_encoder"]}
    joint["similarity_prior"] = {
        **joint["similarity_prior"],
        "out": jax.tree.map(np.zeros_like, out),
    }
    fresh = dataclasses.replace(model, params={**model.params, "joint_encoder": joint})
    reranker, without = Reranker(fresh), Reranker.from_pretrained(plain)
    tokens = without.encode_images(images)
    expected = without.score(CAPTIONS, tokens)
    np.testing.assert_allclose(reranker.score(CAPTIONS, tokens, similarity), expected, atol=1e-6)


@torch.no_grad()
def test_the_pytorch_module_has_prior_mix_and_calibration(folder, images, similarity):
    reranker = Reranker.from_pretrained(folder)
    tokens = reranker.encode_images(images)
    expected = reranker.score(CAPTIONS, tokens, similarity)
    for model in (
        EdjeModel.from_folder(folder),
        AutoModel.from_pretrained(folder, trust_remote_code=True).eval(),
    ):
        ids = model.tokenize(CAPTIONS)
        given = {"tokens": torch.from_numpy(tokens), "similarity": torch.from_numpy(similarity)}
        logits = model.score(**ids, **given)
        np.testing.assert_allclose(logits, expected, atol=2e-4)
        with pytest.raises(ValueError, match="cosine"):
            model.score(**ids, tokens=given["tokens"])
        scores = model.probability(logits)
        np.testing.assert_allclose(scores, probability(expected, CALIBRATION), atol=1e-5)
        rng = np.random.default_rng(0)
        many, cosines = rng.normal(size=(2, 9)).astype(np.float32)
        ours = add_cosines(many, cosines, CALIBRATION.similarity_weight)
        theirs = model.mixed(torch.from_numpy(many), torch.from_numpy(cosines))
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_cross_encoder_scores_with_both(folder, images):
    reranker = Reranker.from_pretrained(folder)
    encoder = CrossEncoder(str(folder), trust_remote_code=True, device="cpu")
    pairs = list(zip(CAPTIONS, images, strict=True))
    np.testing.assert_allclose(encoder.predict(pairs), reranker.predict(pairs), atol=5e-4)
    tokens = encoder[0].encode(images[:1])[0]
    with pytest.raises(TypeError, match="give images, not tokens"):
        encoder.predict([("a dog", tokens)])


def test_the_published_layout_has_no_prior(folder, tmp_path):
    model = load_model(str(folder))
    joint = dataclasses.replace(model.config.joint_encoder, deferred_layers=0)
    config = dataclasses.replace(model.config, joint_encoder=joint)
    with pytest.raises(ValueError, match="has a similarity prior, of which the published code"):
        save_published(tmp_path / "model.pth", dataclasses.replace(model, config=config))


@pytest.mark.extra
def test_onnxruntime_takes_the_cosine(folder, images, similarity, tmp_path):
    convert(str(folder), str(tmp_path / "onnx"), "onnx")
    assert json.loads((tmp_path / "onnx" / "calibration.json").read_text())["bias"] == -1.5
    reranker, model = Reranker.from_pretrained(folder), EdjeModel.from_folder(folder)
    tokens = reranker.encode_images(images)
    ids = {name: value.numpy() for name, value in model.tokenize(CAPTIONS).items()}
    rows, there = run(tmp_path / "onnx" / "text.onnx", **ids)
    (logits,) = run(
        tmp_path / "onnx" / "online.onnx",
        text=rows,
        text_mask=there,
        caption=np.arange(3),
        tokens=tokens,
        similarity=similarity,
    )
    np.testing.assert_allclose(logits, reranker.score(CAPTIONS, tokens, similarity), atol=2e-4)
