"""Training a backbone: it learns, and what it exports is transformers' own model.

Covers runtimes/dual_encoder.py and training/backbone_step.py.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel

from edje_jax.config.model import BackboneConfig, ImageRecipe, TextConfig, VisionConfig
from edje_jax.config.run import BackboneRun, DataConfig, OptimConfig
from edje_jax.data.images import load_image, resize
from edje_jax.data.text import BackboneTokenizer, canonicalise
from edje_jax.runtimes.dual_encoder import DualEncoder
from edje_jax.scenes.shapes import Shapes
from edje_jax.training.loop import run
from edje_jax.training.tasks.backbone import BackboneTask
from edje_jax.weights.backbone import expected_params, load_backbone, save_backbone
from tests.small_runs import TINY, read_log

SIDE = 24


def blip_set(folder: Path, images: int) -> str:
    """Scenes as a set of files, which cannot say what patches hold."""
    source, entries = Shapes("train", image_size=SIDE), []
    for i in range(images):
        source.image(i).save(folder / f"{i}.png")
        entries.append({"image": f"{i}.png", "caption": list(source.captions(i))})
    (folder / "set.json").write_text(json.dumps(entries))
    return f"blip:{folder / 'set.json'}"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> BackboneRun:
    spec = blip_set(tmp_path_factory.mktemp("set"), 32)
    return BackboneRun(
        steps=25,
        data=DataConfig(train=spec, val=spec, batch_size=16),
        vision=VisionConfig(16, 32, 1, 2, image_size=SIDE, patch_size=8),
        text=TextConfig(120, 16, 32, 1, 2, max_position_embeddings=24, projection_size=16),
        optim=OptimConfig(lr=3e-3, schedule="cosine", warmup_steps=2),
        precision="float32",
        log_every=1,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> Path:
    """The workdir of a short run on files."""
    workdir = tmp_path_factory.mktemp("backbone")
    assert run(BackboneTask(config, workdir), workdir)
    return workdir


def test_a_backbone_says_how_its_images_are_read(config, tmp_path):
    white = dataclasses.replace(config, transparency="white", icc_profile="applied")
    task = BackboneTask(white, tmp_path / "run")
    assert task.image == ImageRecipe(SIDE, icc_profile="applied", transparency="white")
    (tmp_path / "out").mkdir()
    task.export(task.fetch(task.init()), tmp_path / "out")
    assert load_backbone(str(tmp_path / "out")).image == task.image


def test_the_loss_falls_and_the_end_is_evaluated(finished):
    log = read_log(finished)
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 25 and np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    figures = log[-1]
    assert {f"val/{d}/R@{k}" for d in ("t2i", "i2t") for k in (1, 5, 10)} <= set(figures)
    assert 0 < figures["val/t2i/R@10"] <= 100


def test_the_export_is_a_hugging_face_folder(finished):
    names = {path.name for path in (finished / "model").iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "preprocessor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_transformers_embeds_images_and_captions_as_we_do(finished):
    folder = finished / "model"
    backbone = load_backbone(str(folder))
    length = backbone.config.text.max_position_embeddings
    rng = np.random.default_rng(0)
    opened = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))
                for h, w in ((24, 24), (50, 31), (7, 90))]  # fmt: skip
    captions = ["a red circle left of a blue square", "Stars, inside!", "x", "a small " * 40]

    dual = DualEncoder(
        backbone.config,
        backbone.image,
        backbone.params,
        BackboneTokenizer(folder, length, backbone.config.text.pad_token_id),
    )
    images = np.stack([resize(load_image(one), backbone.image) for one in opened])

    theirs = SiglipModel.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    inputs = AutoTokenizer.from_pretrained(folder)(
        [canonicalise(caption) for caption in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    with torch.no_grad():
        image = theirs.get_image_features(**processor(opened, return_tensors="pt"))
        text = theirs.get_text_features(**inputs)
    for ours, out in ((dual.embed_images(images), image), (dual.embed_texts(captions), text)):
        expected = torch.nn.functional.normalize(out.pooler_output, dim=-1).numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
        assert np.abs(ours[0] - ours[1]).max() > 1e-3


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Folder of a CLIP of random weights."""
    shapes = BackboneConfig(
        "clip",
        VisionConfig(16, 32, 2, 2, image_size=SIDE, patch_size=8),
        TextConfig(64, 16, 32, 1, 2, max_position_embeddings=24, projection_size=16),
        token_layer=-2,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        expected_params(shapes),
    )
    folder = tmp_path_factory.mktemp("clip")
    save_backbone(folder, shapes, ImageRecipe(SIDE, "crop"), params, TINY / "siglip")
    return str(folder)


@pytest.mark.parametrize("start", ["siglip", "workdir", "clip"])
def test_a_run_starts_exactly_where_its_backbone_is(start, config, finished, clip, tmp_path):
    """Shapes, tokenizer and image recipe are the backbone's, whatever the config says."""
    init = {"siglip": str(TINY / "siglip"), "workdir": str(finished), "clip": clip}[start]
    white = {"vision": VisionConfig(), "text": TextConfig(), "transparency": "white"}
    task = BackboneTask(dataclasses.replace(config, init=init, **white), tmp_path / "run")
    backbone = load_backbone(init)
    assert (task.backbone, task.image) == (backbone.config, backbone.image)
    assert (task.config.vision, task.config.text) == (backbone.config.vision, backbone.config.text)
    assert task.config.transparency == "dropped"
    state = task.init()
    dual = DualEncoder(
        backbone.config,
        backbone.image,
        backbone.params,
        BackboneTokenizer(
            backbone.folder,
            backbone.config.text.max_position_embeddings,
            backbone.config.text.pad_token_id,
        ),
    )
    found = dual.evaluate(task.validation, 0.0)
    assert task.evaluate(state) == {
        f"val/{d}/{name}": value for d in found for name, value in found[d].items()
    }
    (tmp_path / "out").mkdir()
    task.export(task.fetch(state), tmp_path / "out")
    again = load_backbone(str(tmp_path / "out"))
    # A SigLIP reads no end token, and what is written of it names none.
    text = dataclasses.replace(again.config.text, eos_token_id=backbone.config.text.eos_token_id)
    assert dataclasses.replace(again.config, text=text) == backbone.config
    assert again.image == backbone.image
    jax.tree.map(np.testing.assert_array_equal, again.params, backbone.params)


def test_a_clip_trains_by_its_own_loss(config, clip, tmp_path):
    task = BackboneTask(dataclasses.replace(config, init=clip), tmp_path)
    state, batch, told = task.init(), task.reader[0][0], []
    for number in range(10):
        state, metrics = task.step(state, batch, number)
        told.append(float(metrics["loss/softmax"]))
    assert "loss/sigmoid" not in metrics
    # Slowly, as the scale of random weights is near 1, but at every step on the same batch.
    assert told[-1] < told[0] - 0.005 and all(np.diff(told[1:]) < 0), told


def test_patch_naming_without_labels_is_said_and_left_out(config, tmp_path, caplog):
    caplog.set_level("INFO")
    task = BackboneTask(dataclasses.replace(config, patch_naming=1.0), tmp_path)
    assert f"{config.data.train} cannot say what patches hold: no patch naming" in caplog.text
    assert set(task.init().params) == {"siglip"}
    assert task.reader[0][0].extra_labels is None


def test_patch_naming_learns_from_scenes(config, tmp_path):
    data = DataConfig(train="shapes:train", batch_size=16)
    task = BackboneTask(dataclasses.replace(config, data=data, patch_naming=1.0), tmp_path)
    state, batch = task.init(), task.reader[0][0]
    assert set(state.params) == {"siglip", "patch_naming"}
    assert batch.extra_labels.shape == (16, 9, 4)
    told = []
    for number in range(25):
        state, metrics = task.step(state, batch, number)
        told.append({name: float(value) for name, value in metrics.items()})
    first, last = told[0], told[-1]
    assert last["loss/patch_naming"] < 0.9 * first["loss/patch_naming"]
    np.testing.assert_allclose(first["loss"], first["loss/sigmoid"] + first["loss/patch_naming"])
    folder = tmp_path / "model"
    folder.mkdir()
    task.export(task.fetch(state), folder)
    exported = load_backbone(str(folder))
    assert jax.tree.structure(exported.params) == jax.tree.structure(state.params["siglip"])


def test_an_epoch_counts_where_steps_do_not(config, tmp_path):
    task = BackboneTask(dataclasses.replace(config, steps=None, epochs=3.0), tmp_path)
    assert len(task.reader) == 3 * 32 // 16


def test_what_patches_hold_is_told_of_whole_images(config, tmp_path):
    data = DataConfig(train="shapes:train", crop=0.8, batch_size=16)
    cropped = dataclasses.replace(config, data=data, patch_naming=1.0)
    with pytest.raises(ValueError, match="set it to 1, or --patch-naming to 0"):
        BackboneTask(cropped, tmp_path)
    BackboneTask(dataclasses.replace(cropped, patch_naming=0.0), tmp_path / "whole")
