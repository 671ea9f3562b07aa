"""Models of videos in folders: JAX, PyTorch and onnxruntime agree, short videos included.

Covers weights/torch/modeling_edje.py and weights/torch/edje_cross_encoder.py.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder

from edje_jax.cli.convert import convert
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import AdapterConfig, EdjeConfig
from edje_jax.data.images import normalise, resize
from edje_jax.runtimes.base import Encoded
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.types import Frames
from edje_jax.weights import edje, onnx
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.published import save_published
from edje_jax.weights.torch.modeling_edje import EdjeModel

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
CAPTIONS = ["a dog", "two cats, on a mat", "x"]
FRAMES = 3
VARIANTS = {
    "published": {},
    "mean": {"pooling": "mean"},
    "deferred": {"deferred_layers": 1},
    "attended": {"deferred_layers": 1, "online_vision": "attended"},
    "captioner": {"captioner": CaptionerConfig()},
}
"""Settings in which models of videos differ from a published one, by name."""


@functools.cache
def made(variant: str) -> Model:
    """A model of random weights, far from zero."""
    settings = dict(VARIANTS[variant])
    video = VideoConfig(FrameSampling(FRAMES, "rate", 2.0), settings.pop("pooling", "none"))
    captioner = settings.pop("captioner", None)
    backbone = load_backbone(str(TINY / "siglip"))
    joint = dataclasses.replace(load_language_model(str(TINY / "bert")).config, **settings)
    config = EdjeConfig(
        backbone.config, AdapterConfig("compress", 2, 24), joint, backbone.image,
        max_text_length=24, captioner=captioner, video=video,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    def draw(path, struct):
        value = rng.normal(0.0, 0.2, struct.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    params = jax.tree_util.tree_map_with_path(draw, edje.expected_params(config))
    return Model(config, params, backbone, TINY / "bert", "made")


def saved(variant: str, out: Path) -> Path:
    out.mkdir()
    save_model(out, made(variant), model_card(made(variant)))
    return out


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory) -> Path:
    return saved(request.param, tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return saved("published", tmp_path_factory.mktemp("published") / "model")


@functools.cache
def videos() -> Frames:
    """Three videos, of which the second has one frame and the third two; noise stands behind."""
    side = made("published").config.image.size
    pixels = np.random.default_rng(0).integers(0, 256, (3, FRAMES, side, side, 3), np.uint8)
    return Frames(pixels, np.arange(FRAMES) < [[3], [1], [2]])


@functools.cache
def of_jax(variant: str) -> tuple[Encoded, np.ndarray]:
    """Encoded videos, and the score of each with its own caption."""
    runtime, each = JaxRuntime.of(made(variant), "float32"), np.arange(3)
    encoded = runtime.encode_images(videos())
    ids = runtime.joint_tokenizer(CAPTIONS)
    return encoded, runtime.score_pairs(ids, encoded.tokens, each, each)


def torch_inputs(model: Model) -> dict[str, torch.Tensor]:
    pixels = np.asarray(normalise(videos().pixels, model.config.image), np.float32)
    moved = torch.from_numpy(np.moveaxis(pixels, -1, 2).copy())
    return {"pixel_values": moved, "present": torch.from_numpy(videos().present)}


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
    """Alike within a share of the largest value."""
    scale = max(np.abs(expected).max(), 1)
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, rtol=0, atol=tolerance)


def change(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_the_same_model_again(folder, tmp_path):
    model, again = made(folder.name), load_model(str(folder))
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    config = json.loads((folder / "config.json").read_text())
    assert (config["format"], config["num_tokens"]) == (8, model.config.num_tokens)
    sampling = {"frames": FRAMES, "by": "rate", "rate": 2.0}
    assert config["video"] == {"sampling": sampling, "pooling": model.config.video.pooling}
    (tmp_path / "copy").mkdir()
    save_model(tmp_path / "copy", again, model_card(model))
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], r'"video" of \[\]: .*; export the model again'),
        ({"pooling": "mean"}, "'sampling'; export"),
        ({"sampling": {"frames": 0}, "pooling": "none"}, "frames 0: read at least 1 frame .*; exp"),
        ({"sampling": {"by": "luck"}, "pooling": "none"}, r'by "luck": uniform, rate, keyframes'),
        ({"sampling": {"fps": 3}, "pooling": "none"}, "'fps'; export"),
        ({"sampling": {}, "pooling": "max"}, 'pooling "max": none or mean; export'),
        ({"sampling": {}, "pooling": "none", "speed": 2}, "'speed'; export"),
    ],
)
def test_a_damaged_entry_is_named_with_its_remedy(published, tmp_path, entry, message):
    broken = shutil.copytree(published, tmp_path / "broken")
    change(broken, video=entry)
    with pytest.raises(ValueError, match=message) as told:
        load_model(str(broken))
    assert str(told.value).startswith(f"{broken / 'config.json'}: ")
    assert "\n" not in str(told.value)


def test_the_published_layout_has_no_videos(tmp_path):
    with pytest.raises(ValueError, match="has frames of videos, of which the published code knows"):
        save_published(tmp_path / "model.pth", made("published"))
    assert not list(tmp_path.iterdir())


# --- PyTorch --------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_pytorch_module_gives_what_jax_gives(folder):
    model, (encoded, scores) = EdjeModel.from_folder(folder), of_jax(folder.name)
    inputs = torch_inputs(made(folder.name))
    tokens = model.encode_image(**inputs)
    assert tokens.shape[1] == model.num_tokens == made(folder.name).config.num_tokens
    assert_close(tokens, encoded.tokens)
    if folder.name != "mean":
        assert not tokens[1, 2:].any() and tokens[1, :2].all()
    assert_close(model.embed_image(**inputs), encoded.embeddings)
    assert_close(model.score(**model.tokenize(CAPTIONS), tokens=tokens), scores)
    read = model.read_text(**model.tokenize(CAPTIONS[1:2]))
    assert_close(model.score_read(*read, tokens)[1], scores[1])


@torch.no_grad()
def test_an_image_is_a_video_of_one_frame(folder):
    model = EdjeModel.from_folder(folder)
    inputs = torch_inputs(made(folder.name))
    tokens = model.encode_image(inputs["pixel_values"][1, :1])
    assert_close(tokens, of_jax(folder.name)[0].tokens[1:2])


def test_frames_that_a_model_does_not_read_are_refused(published, tmp_path):
    pixels = torch.zeros(1, FRAMES + 1, 3, 8, 8)
    with pytest.raises(ValueError, match="4 frames, and the model reads 3"):
        EdjeModel.from_folder(published).encode_image(pixels)
    images = shutil.copytree(published, tmp_path / "images")
    change(images, video=None, num_tokens=2)
    with pytest.raises(ValueError, match="this model reads images and no videos"):
        EdjeModel.from_folder(images).encode_image(pixels)


def test_frames_rank_as_a_cross_encoder(published, tmp_path):
    """Videos as lists of frames, images, and tokens made before."""
    frames = [Image.fromarray(pixels) for pixels in videos().pixels[0]]
    frames[1].save(tmp_path / "one.png")
    documents = [frames, tmp_path / "one.png", frames[:2]]
    recipe = made("published").config.image
    assert np.array_equal(resize(frames[0], recipe), videos().pixels[0, 0])
    present = np.arange(FRAMES) < [[3], [1], [2]]
    pixels = videos().pixels[[0, 0, 0]]
    pixels[1, 0] = videos().pixels[0, 1]
    runtime = JaxRuntime.of(made("published"), "float32")
    tokens = runtime.encode_images(Frames(pixels, present)).tokens
    ids, first = runtime.joint_tokenizer(["a dog"]), np.zeros(3, int)
    expected = runtime.score_pairs(ids, tokens, first, np.arange(3))
    encoder = CrossEncoder(str(published), trust_remote_code=True, device="cpu")
    exactly = {"activation_fn": torch.nn.Identity(), "show_progress_bar": False}
    pairs = [("a dog", document) for document in documents]
    assert_close(encoder.predict(pairs, **exactly), expected, 1e-4)
    made_before = encoder[0].encode(documents)
    assert_close(
        encoder.predict([("a dog", one) for one in made_before], **exactly), expected, 1e-4
    )


# --- ONNX -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(variant, marks=() if variant == "deferred" else pytest.mark.extra)
        for variant in VARIANTS
    ],
    indirect=True,
)
def test_onnxruntime_gives_what_jax_gives(folder, tmp_path, monkeypatch):
    kept = {"": onnx.PRECISIONS[""]}
    monkeypatch.setattr(onnx, "PRECISIONS", kept)
    convert(str(folder), str(tmp_path / "onnx"), "onnx")
    model, (encoded, scores) = EdjeModel.from_folder(folder), of_jax(folder.name)
    inputs = {name: value.numpy() for name, value in torch_inputs(made(folder.name)).items()}
    (tokens,) = onnx.run(tmp_path / "onnx" / "offline.onnx", **inputs)
    assert_close(tokens, encoded.tokens, 1e-4)
    text = {name: value.numpy() for name, value in model.tokenize(CAPTIONS).items()}
    if folder.name in ("deferred", "attended"):
        rows, there = onnx.run(tmp_path / "onnx" / "text.onnx", **text)
        text = {"text": rows, "text_mask": there, "caption": np.arange(3)}
    elif folder.name == "captioner":
        (alone,) = onnx.run(tmp_path / "onnx" / "text.onnx", **text)
        text |= {"without_image": alone, "caption": np.arange(3)}
    (found,) = onnx.run(tmp_path / "onnx" / "online.onnx", **text, tokens=tokens)
    assert_close(found, scores, 1e-4)
