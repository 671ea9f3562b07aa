"""Heads of the first stage in what is made of a model folder: PyTorch, other formats, the card.

Covers weights/torch/modeling_edje.py and weights/torch/edje_cross_encoder.py.
"""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder
from transformers import AutoModel

from edje_jax.cli.convert import convert
from edje_jax.config.calibration import Calibration
from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.first_stage.packing import pack
from edje_jax.models.heads.first_stage import fresh_heads
from edje_jax.search.reranker import Reranker
from edje_jax.weights.card import model_card
from edje_jax.weights.first_stage import WEIGHTS
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.published import load_published
from edje_jax.weights.torch.modeling_edje import EdjeModel

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
CAPTIONS = ["a dog", "two cats, on a mat", "x"]
WHOLE = FirstStageConfig((8, 64), hidden_size=5, reads_tokens=True)
HEADS = {
    "linear": (FirstStageConfig((8, 64)), 0),
    "hidden layer": (FirstStageConfig((8, 64), hidden_size=5), 0),
    "tokens of a deferred layer": (FirstStageConfig((8, 64), reads_tokens=True), 1),
    "no codes": (FirstStageConfig(()), 0),
}
"""Shape of heads, and number of deferred layers of their model, by the name of a case."""


def published() -> Model:
    return load_published(str(TINY / "compressed.pth"), str(TINY / "siglip"), str(TINY / "bert"))


def with_heads(stage: FirstStageConfig, deferred_layers: int = 0) -> Model:
    """The published checkpoint with heads of random weights, tuned to mix cosines in."""
    model = published()
    joint = dataclasses.replace(model.config.joint_encoder, deferred_layers=deferred_layers)
    config = dataclasses.replace(model.config, joint_encoder=joint, first_stage=stage)
    rng = np.random.default_rng(0)
    heads = jax.tree.map(
        lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
        fresh_heads(config, jax.random.key(0)),
    )
    calibration = Calibration(2.0, 1.5, 0.1, {})
    return dataclasses.replace(model, config=config, heads=heads, calibration=calibration)


def saved(folder: Path, model: Model) -> Path:
    folder.mkdir()
    save_model(folder, model, "A card.\n")
    return folder


@pytest.fixture(scope="module", params=list(HEADS))
def folder(request, tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "heads", with_heads(*HEADS[request.param]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with heads that have every part, for tests of one kind alone."""
    return saved(tmp_path_factory.mktemp("models") / "whole", with_heads(WHOLE))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "plain", published())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Paths of three images of noise."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for i in range(3):
        noise = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3)]


class Outputs(NamedTuple):
    """Embeddings and projections of three images and three captions."""

    image: np.ndarray
    text: np.ndarray
    projected_image: np.ndarray
    projected_text: np.ndarray


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)


def of_jax(folder: Path) -> Outputs:
    reranker = Reranker.from_pretrained(folder, precision="float32")
    encoded = reranker.runtime.encode_pixels(noise(reranker.config.image.size))
    text = reranker.runtime.encode_texts(CAPTIONS)
    return Outputs(encoded.embeddings, text.embeddings, encoded.projections, text.projections)


@torch.no_grad()
def of_torch(model: EdjeModel) -> Outputs:
    pixels = noise(model.backbone.config.vision_config.image_size)
    pixels = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    made = (
        model.embed_image(pixels), model.embed_text(CAPTIONS),
        model.project_image(pixels), model.project_text(CAPTIONS),
    )  # fmt: skip
    known = model.embed_image(pixels, model.encode_image(pixels))
    torch.testing.assert_close(known, made[0], rtol=0, atol=1e-6)
    return Outputs(*(one.numpy() for one in made))


def assert_alike(theirs: Outputs, ours: Outputs) -> None:
    """Embeddings within 1e-5, and codes that are equal but for bits at the edge."""
    for got, expected in zip(theirs[:2], ours[:2], strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    for got, expected in zip(theirs[2:], ours[2:], strict=True):
        assert got.shape == expected.shape and got.dtype == np.float32
        if not expected.shape[1]:
            continue
        bits = np.unpackbits(EdjeModel.pack(torch.from_numpy(got)).numpy(), axis=1)
        equal = bits == np.unpackbits(pack(expected), axis=1)
        assert np.all(equal | (np.abs(expected) < 1e-4))
        assert 0.2 < bits.mean() < 0.8  # Not all alike


def test_embeddings_and_codes_are_those_of_jax(folder):
    ours = of_jax(folder)
    for model in (
        EdjeModel.from_folder(folder),
        AutoModel.from_pretrained(folder, trust_remote_code=True).eval(),
    ):
        assert_alike(of_torch(model), ours)


def test_heads_move_embeddings_and_a_folder_without_them_is_as_before(whole, plain):
    model = EdjeModel.from_folder(plain)
    without, moved = of_torch(model), of_torch(EdjeModel.from_folder(whole))
    assert_alike(without, of_jax(plain))
    assert np.abs(moved.image - without.image).max() > 0.05
    assert np.abs(moved.text - without.text).max() > 0.05
    assert without.projected_image.shape == without.projected_text.shape == (3, 0)
    with pytest.raises(ValueError, match="no code head; train one with edje train first_stage"):
        model.pack(model.project_text(CAPTIONS))


def test_codes_are_packed_as_numpy_packs_bits():
    projections = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 64)).astype("f4"))
    projections[0, 0] = 0.0  # Not above 0
    codes = EdjeModel.pack(projections)
    assert codes.dtype == torch.uint8
    np.testing.assert_array_equal(codes, pack(projections.numpy()))
    np.testing.assert_array_equal(EdjeModel.pack(projections, bits=24), codes[:, :3])
    for bits in (0, -8, 12, 72):
        with pytest.raises(ValueError, match=f"codes of {bits} bits: give a multiple of 8, from 8"):
            EdjeModel.pack(projections, bits)


def test_heads_stay_in_float32_when_the_model_does_not(whole):
    expected = of_torch(EdjeModel.from_folder(whole)).text
    half = EdjeModel.from_folder(whole)
    torch.nn.Module.to(half, torch.bfloat16)
    with torch.no_grad():
        embedded = half.embed_text(CAPTIONS)
    assert embedded.dtype == torch.float32
    np.testing.assert_allclose(embedded, expected, rtol=0, atol=0.05)


def test_a_missing_file_of_heads_is_named_with_its_remedy(whole, tmp_path):
    broken = shutil.copytree(whole, tmp_path / "broken")
    (broken / WEIGHTS).unlink()
    model = EdjeModel.from_folder(broken)
    message = f"{re.escape(str(broken))}: no {WEIGHTS} here.* fetch or export the model again"
    with pytest.raises(FileNotFoundError, match=message):
        model.embed_text(CAPTIONS)


def test_saving_the_pytorch_model_keeps_heads_and_all_else(whole, tmp_path):
    model = AutoModel.from_pretrained(whole, trust_remote_code=True)
    copy = tmp_path / "again"
    model.save_pretrained(copy)
    before, after = ({p.relative_to(at) for p in at.rglob("*.*")} for at in (whole, copy))
    assert before <= after
    for name in (WEIGHTS, "calibration.json", "backbone/model.safetensors"):
        assert (copy / name).read_bytes() == (whole / name).read_bytes()
    again = AutoModel.from_pretrained(copy, trust_remote_code=True).eval()
    for got, expected in zip(of_torch(again), of_torch(model.eval()), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert load_model(str(copy)).config == load_model(str(whole)).config


def test_changed_weights_are_saved_and_not_those_beside_them(whole, tmp_path):
    model = EdjeModel.from_folder(whole)
    with torch.no_grad():
        model.text_projection.bias.add_(1)
    model.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    assert not (tmp_path / "again" / "model.safetensors").exists()
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    torch.testing.assert_close(again.text_projection.bias, model.text_projection.bias)


def test_a_cross_encoder_mixes_in_cosines_of_the_heads(whole, images):
    reranker = Reranker.from_pretrained(whole, precision="float32")
    encoder = CrossEncoder(str(whole), trust_remote_code=True, device="cpu")
    pairs = list(zip(CAPTIONS, images, strict=True))
    np.testing.assert_allclose(encoder.predict(pairs), reranker.predict(pairs), atol=5e-4)
    module: Any = encoder[0]
    features = module.preprocess(pairs)
    cosines = (reranker.embed_texts(CAPTIONS) * reranker.embed_images(images)).sum(axis=1)
    np.testing.assert_allclose(features["similarity"], cosines, atol=1e-5)


def test_converting_a_model_folder_keeps_its_heads(whole, tmp_path):
    convert(str(whole), str(tmp_path / "copy"), "edje")
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    configs = [json.loads((at / "config.json").read_text()) for at in (whole, tmp_path / "copy")]
    assert configs[0] == configs[1]


def test_the_published_layout_drops_heads_with_a_warning(whole, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        convert(str(whole), str(tmp_path / "model.pth"), "published")
    assert "heads of the first stage stay behind" in caplog.text
    again = load_published(str(tmp_path / "model.pth"), str(TINY / "siglip"), str(TINY / "bert"))
    assert again.config.first_stage is None and again.heads is None
    jax.tree.map(np.testing.assert_array_equal, again.params, load_model(str(whole)).params)


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        (WHOLE, "they give\nembeddings of 48 numbers, and codes of 8, 64 bits.\n"),
        (FirstStageConfig(()), "they give\nembeddings of 48 numbers.\n"),
    ],
)
def test_a_card_tells_of_heads_and_the_lengths_of_codes(stage, sentence):
    assert sentence in model_card(with_heads(stage))
    assert WEIGHTS not in model_card(published())
