"""JAX, the PyTorch module and onnxruntime agree, on both adapters and both families.

Covers weights/onnx.py, weights/torch/edje_cross_encoder.py and weights/torch/modeling_edje.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder
from transformers import AutoModel, AutoTokenizer

from benchmarks.torch_recalls import with_torch
from edje_jax.cli.convert import convert
from edje_jax.cli.evaluate import evaluate_model
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.data.images import load_image, normalise, resize
from edje_jax.data.sources.registry import open_captioned
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.weights import bert, edje
from edje_jax.weights.backbone import expected_params, load_backbone, save_backbone
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.onnx import run
from edje_jax.weights.published import save_published
from edje_jax.weights.torch.modeling_edje import EdjeModel
from tests.data.test_backbone_tokenizers import clip as clip_tokenizer
from tests.data.test_colours import linear_grey, swapped

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
CAPTIONS = ["a dog", "two cats, on a mat", "x"]


@pytest.fixture(scope="module", params=["local", "compressed", "deferred"])
def folder(request, tmp_path_factory) -> Path:
    """The published checkpoint as a model folder; also as if a layer of it were deferred."""
    out = tmp_path_factory.mktemp("models") / request.param
    source = TINY / f"{'local' if request.param == 'local' else 'compressed'}.pth"
    convert(str(source), str(out), "edje", str(TINY / "siglip"), str(TINY / "bert"))
    if request.param == "deferred":
        edit_joint_encoder(out, deferred_layers=1)
    return out


def edit_joint_encoder(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["joint_encoder"] |= values
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def pixels(folder) -> np.ndarray:
    side = Reranker.from_pretrained(folder).config.image.size
    return np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(folder, pixels) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and logits of JAX."""
    reranker = Reranker.from_pretrained(folder)
    tokens = reranker.encode_images(pixel_values=pixels)
    return tokens, reranker.score(CAPTIONS, tokens)


def channels_first(pixels: np.ndarray, dtype=torch.float32) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()).to(dtype)


@torch.no_grad()
def of_torch(model: EdjeModel, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens = model.encode_image(channels_first(pixels))
    return tokens.numpy(), model.score(**model.tokenize(CAPTIONS), tokens=tokens).numpy()


def of_onnx(
    onnx: Path, ending: str, model: EdjeModel, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Through the files, each image with its caption."""
    count = len(pixels)
    text = {name: ids.numpy() for name, ids in model.tokenize(CAPTIONS[:count]).items()}
    (tokens,) = run(onnx / f"offline{ending}.onnx", pixel_values=np.moveaxis(pixels, -1, 1))
    if model.deferred:
        rows, there = run(onnx / f"text{ending}.onnx", **text)
        text = {"text": rows, "text_mask": there, "caption": np.arange(count)}
    (logits,) = run(onnx / f"online{ending}.onnx", **text, tokens=tokens)
    return tokens, logits


def agree(got, expected, tolerance: float = 2e-4) -> None:
    tokens, logits = got
    scale = np.abs(expected[0]).max()
    np.testing.assert_allclose(tokens / scale, expected[0] / scale, atol=tolerance)
    np.testing.assert_allclose(logits, expected[1], atol=tolerance)


def test_the_pytorch_module(folder, pixels, expected):
    agree(of_torch(EdjeModel.from_folder(folder), pixels), expected)


def test_through_transformers(folder, pixels, expected):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "EdjeModel"
    agree(of_torch(model.eval(), pixels), expected)


def test_it_needs_no_jax(folder):
    """The file that lies in the folder, in a process where JAX cannot be imported."""
    code = f"""
import sys
for name in ("jax", "jaxlib", "flax", "edje_jax"):
    sys.modules[name] = None
sys.path.insert(0, {str(folder)!r})
from modeling_edje import EdjeModel
from PIL import Image
model = EdjeModel.from_folder({str(folder)!r})
tokens = model.encode_image(model.preprocess([Image.new("RGB", (9, 7))]))
print(model.score(**model.tokenize(["a dog"]), tokens=tokens).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert np.isfinite(float(done.stdout.strip("[]\n")))


def test_embeddings_are_the_first_stage_s(folder):
    reranker, model = Reranker.from_pretrained(folder), EdjeModel.from_folder(folder)
    ours = reranker.embed_texts(CAPTIONS)
    np.testing.assert_allclose(model.embed_text(CAPTIONS).detach(), ours, atol=2e-5)


def in_two_files(folder: Path) -> None:
    """A tokenizer.json as OpenAI's older vocab.json and merges.txt."""
    made = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(made["vocab"]))
    merges = [" ".join(pair) for pair in made["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


@pytest.mark.parametrize("class_token, old_tokenizer", [(False, False), (True, True)])
def test_a_clip_backbone_through_the_pytorch_module(class_token, old_tokenizer, tmp_path):
    """Tokens of the penultimate layer, the centre crop, and CLIP's own text tower."""
    pieces, source = tmp_path / "pieces", tmp_path / "clip"
    pieces.mkdir()
    source.mkdir()
    clip_tokenizer(pieces)
    if old_tokenizer:
        in_two_files(pieces)
    words = len(AutoTokenizer.from_pretrained(str(pieces)))
    towers = BackboneConfig(
        "clip",
        VisionConfig(32, 64, 3, 2, image_size=32, patch_size=8, hidden_act="quick_gelu"),
        TextConfig(
            words, 24, 48, 2, 2, max_position_embeddings=20, projection_size=16,
            eos_token_id=words - 1, hidden_act="quick_gelu",
        ),
    )  # fmt: skip
    image = ImageRecipe(size=32, resize="crop", resample="bicubic")
    save_backbone(source, towers, image, random_like(expected_params(towers)), pieces)
    backbone = load_backbone(str(source)).with_vision_tokens(class_token=class_token)
    config = EdjeConfig(
        backbone.config,
        AdapterConfig("compress", num_tokens=4, intermediate_size=32),
        bert.load_language_model(str(TINY / "bert")).config,
        backbone.image,
        max_text_length=24,
    )
    params = random_like(edje.expected_params(config))
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, Model(config, params, backbone, TINY / "bert", "test"), "A card.\n")
    pixels = np.random.default_rng(2).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    reranker, model = Reranker.from_pretrained(folder), EdjeModel.from_folder(folder)
    paths = [str(tmp_path / "wide.png")] * 3
    tokens = reranker.encode_images(paths)
    with torch.no_grad():
        theirs = model.encode_image(model.preprocess(paths))
        logits = model.score(**model.tokenize(CAPTIONS), tokens=theirs)
        embeddings = model.embed_text(CAPTIONS)
    agree((theirs.numpy(), logits.numpy()), (tokens, reranker.score(CAPTIONS, tokens)))
    np.testing.assert_allclose(embeddings, reranker.embed_texts(CAPTIONS), atol=2e-5)


@pytest.mark.parametrize("reading", [{}, {"icc_profile": "applied", "transparency": "white"}])
def test_images_are_read_alike_by_both(reading, tmp_path):
    convert(
        str(TINY / "compressed.pth"), str(tmp_path / "m"), "edje",
        str(TINY / "siglip"), str(TINY / "bert"),
    )  # fmt: skip
    settings = tmp_path / "m" / "backbone" / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | reading))
    recipe = load_model(str(tmp_path / "m")).config.image
    model = EdjeModel.from_folder(tmp_path / "m")
    pixels = np.random.default_rng(3).integers(0, 256, (40, 60, 4), np.uint8)
    for mode in ("RGBA", "RGB", "P", "LA", "L", "CMYK"):
        profile = linear_grey() if mode[0] == "L" else swapped()
        image = Image.fromarray(pixels)
        image = (image.convert("RGB") if mode == "CMYK" else image).convert(mode)
        image.save(tmp_path / "a.tif", icc_profile=profile)
        ours = resize(load_image(tmp_path / "a.tif", recipe), recipe)
        theirs = model.preprocess([tmp_path / "a.tif"])[0].numpy()
        expected = np.moveaxis(normalise(ours, recipe), -1, 0)
        np.testing.assert_allclose(theirs, expected, atol=1e-6, err_msg=mode)


def random_like(expected) -> dict:
    """Parameters of these shapes, large enough that every part shows."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), expected)


# --- sentence-transformers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross_encoder(folder) -> CrossEncoder:
    return CrossEncoder(str(folder), trust_remote_code=True, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[str]:
    """Paths of three noisy images."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for i in range(3):
        noise = rng.integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3)]


def test_it_ranks_as_a_cross_encoder(folder, cross_encoder, images):
    reranker = Reranker.from_pretrained(folder)
    logits = reranker.score(["a dog"] * 3, reranker.encode_images(images))
    pairs = [("a dog", path) for path in images]
    raw = cross_encoder.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    np.testing.assert_allclose(raw, logits, atol=5e-4)
    ranked = cross_encoder.rank("a dog", images)
    assert [hit["corpus_id"] for hit in ranked] == np.argsort(-logits).tolist()
    best = 1 / (1 + np.exp(-logits.max()))
    assert ranked[0]["score"] == pytest.approx(best, abs=1e-3)


def test_a_cross_encoder_s_images_come_in_several_forms(cross_encoder, images):
    """Paths, PIL images, {"image": ...} and tokens made before: the same image, one score."""
    tokens = cross_encoder[0].encode(images[:1])[0]
    opened = Image.open(images[0])
    forms = [images[0], opened, {"image": images[0]}, {"image": opened}, tokens]
    scores = cross_encoder.predict([("a dog", form) for form in forms])
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)
    assert len(np.unique(cross_encoder.predict([("a dog", path) for path in images]))) == 3


def test_pairs_the_wrong_way_round_are_refused(cross_encoder, images):
    with pytest.raises(TypeError, match=r"a pair is \(text, image\); its first half is a Png"):
        cross_encoder.predict([(Image.open(images[0]), "a dog")])


def test_padding_and_company_change_nothing(folder, pixels):
    model = EdjeModel.from_folder(folder)
    with torch.no_grad():
        tokens = model.encode_image(channels_first(pixels))
        together = model.score(**model.tokenize(CAPTIONS), tokens=tokens)
        for i, caption in enumerate(CAPTIONS):
            alone = model.score(**model.tokenize([caption]), tokens=tokens[i : i + 1])
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def onnx(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "files"
    convert(str(folder), str(out), "onnx")
    return out


def test_a_caption_is_read_once_for_all_its_candidates(folder, expected):
    model, tokens = EdjeModel.from_folder(folder), torch.from_numpy(expected[0])
    text, mask = model.read_text(**model.tokenize(CAPTIONS[:1]))
    whole = model.score(**model.tokenize(CAPTIONS[:1] * 3), tokens=tokens)
    torch.testing.assert_close(model.score_read(text, mask, tokens), whole, rtol=0, atol=1e-5)


def test_vision_may_be_attended_to_alone(folder, pixels, expected, tmp_path):
    other = shutil.copytree(folder, tmp_path / "attended")
    edit_joint_encoder(other, online_vision="attended")
    reranker = Reranker.from_pretrained(other)
    tokens = reranker.encode_images(pixel_values=pixels)
    logits = reranker.score(CAPTIONS, tokens)
    assert np.abs(logits - expected[1]).max() > 1e-3
    agree(of_torch(EdjeModel.from_folder(other), pixels), (tokens, logits))


@pytest.mark.extra
def test_onnxruntime_attends_to_vision_alone(folder, pixels, expected, tmp_path):
    other = shutil.copytree(folder, tmp_path / "attended")
    edit_joint_encoder(other, online_vision="attended")
    convert(str(other), str(tmp_path / "onnx"), "onnx")
    tokens, logits = of_onnx(tmp_path / "onnx", "", EdjeModel.from_folder(other), pixels)
    assert np.abs(logits - expected[1]).max() > 1e-3
    np.testing.assert_allclose(
        logits, Reranker.from_pretrained(other).score(CAPTIONS, tokens), rtol=0, atol=2e-4
    )


def test_deferred_layers_cannot_be_published(folder, tmp_path):
    model = load_model(str(folder))
    if model.config.joint_encoder.is_published_layout:
        save_published(tmp_path / "model.pth", model)
        assert (tmp_path / "model.pth").stat().st_size > 10_000
        return
    with pytest.raises(ValueError, match="has deferred layers, of which the published code knows"):
        save_published(tmp_path / "model.pth", model)
    assert not list(tmp_path.iterdir())


FEW = pytest.mark.parametrize(
    "folder",
    [pytest.param("local", marks=pytest.mark.extra), "compressed", "deferred"],
    indirect=True,
)
"""Folders whose graphs are traced in every run of the tests."""


@pytest.mark.slow
@FEW
@pytest.mark.parametrize(
    ("ending", "dtype", "tolerance"), [("", "f4", 2e-4), ("-fp16", "f2", 2e-2)]
)
@pytest.mark.parametrize("count", [1, 3])
def test_onnxruntime(onnx, folder, pixels, expected, ending, dtype, tolerance, count):
    """Also at another batch size and text length than the graphs were traced at."""
    model, images = EdjeModel.from_folder(folder), pixels[:count].astype(dtype)
    tokens, logits = of_onnx(onnx, ending, model, images)
    assert tokens.dtype == np.dtype(dtype) and logits.dtype == np.float32
    agree((tokens, logits), [x[:count] for x in expected], tolerance)


@pytest.mark.slow
@FEW
def test_onnxruntime_reads_a_caption_once_for_all_its_candidates(onnx, folder, expected):
    model, tokens = EdjeModel.from_folder(folder), expected[0]
    if not model.deferred:
        assert not (onnx / "text.onnx").exists()
        return
    two = model.tokenize(CAPTIONS[:2])
    rows, there = run(onnx / "text.onnx", **{name: ids.numpy() for name, ids in two.items()})
    caption, image = np.array([1, 0, 1, 1, 0]), np.array([0, 0, 1, 2, 2])
    (logits,) = run(
        onnx / "online.onnx", text=rows, text_mask=there, caption=caption, tokens=tokens[image]
    )
    whole = model.score(
        **{name: ids[caption] for name, ids in two.items()},
        tokens=torch.from_numpy(tokens[image]),
    )
    np.testing.assert_allclose(logits, whole.detach().numpy(), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_pytorch_evaluates_as_jax_does(trained, tmp_path):
    """A trained model, from images to recalls, through both programs."""
    scenes = Shapes("val")
    for i in range(40):
        scenes.image(i).save(tmp_path / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": list(scenes.captions(i))} for i in range(40)]
    (tmp_path / "val.json").write_text(json.dumps(records))
    data = f"blip:{tmp_path / 'val.json'}"
    ours = evaluate_model(str(trained), data)
    theirs = with_torch(trained / "model", open_captioned(data), k=10).metrics()
    for direction in ("t2i", "i2t"):
        for stage in ("base", "reranked"):
            assert theirs[direction][stage] == ours[direction][stage]
