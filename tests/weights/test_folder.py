"""The model folder: saved and loaded it is the same model, and a wrong folder is told apart.

Covers weights/backbone.py.
"""

import dataclasses
import errno
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edje_jax.config.model import EdjeConfig
from edje_jax.models.edje import Edje
from edje_jax.models.siglip import Siglip
from edje_jax.system.files import BadJson, atomic_folder, read_json, write_json
from edje_jax.weights.backbone import load_backbone, read_backbone_config
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model, copy_backbone, load_model, save_model
from edje_jax.weights.mapping import WeightMismatch
from edje_jax.weights.model_stamp import model_fingerprint
from edje_jax.weights.published import load_published, save_published
from edje_jax.weights.tensors import BadWeights, Safetensors

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
KINDS = ("local", "compressed")


@functools.cache
def published(kind: str, path: Path | None = None) -> Model:
    return load_published(
        str(path or TINY / f"{kind}.pth"), str(TINY / "siglip"), str(TINY / "bert")
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compressed checkpoint as a model folder; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder, published("compressed"), "A card.\n")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(saved, tmp_path / "model")


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def assert_same(a: dict, b: dict) -> None:
    """Equal trees of equal arrays, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for ours, theirs in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


@functools.partial(jax.jit, static_argnums=0)
def score(config: EdjeConfig, params, backbone, pixels, ids) -> jax.Array:
    siglip, edje = Siglip(config.backbone), Edje(config)
    image = siglip.apply({"params": backbone}, pixels, method="encode_image")
    tokens = edje.apply({"params": params}, image.tokens, method="compress")
    return edje.apply({"params": params}, ids, tokens, method="match")


def logits(model: Model) -> np.ndarray:
    """Match logits of four captions and images, from pixels on."""
    with np.load(TINY / "inputs.npz") as file:
        pixels = np.moveaxis(file["pixel_values"][:4], 1, -1)
    with np.load(TINY / "expected_local.npz") as file:
        ids = file["pair_input_ids"][:4, :8].astype(np.int32)
    return np.asarray(score(model.config, model.params, model.backbone.params, pixels, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same_model(kind, tmp_path):
    model = published(kind)
    save_model(tmp_path, model, "A card.\n")
    again = load_model(str(tmp_path))
    assert again.config == model.config
    assert_same(again.params, model.params)
    assert_same(again.backbone.params, model.backbone.params)
    np.testing.assert_array_equal(logits(again), logits(model))
    assert (again.tokenizer, again.source) == (tmp_path, str(tmp_path))
    assert (tmp_path / "README.md").read_text() == "A card.\n"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_keep_the_published_names_and_values(kind, tmp_path):
    """So PyTorch reads ours; the frozen towers and what repeats another tensor stay out."""
    save_model(tmp_path, published(kind), "")
    from safetensors.torch import load_file

    theirs = torch.load(TINY / f"{kind}.pth", weights_only=True)["model"]
    repeated = {
        "text_embeddings.weight",
        "language_model.cls.predictions.decoder.weight",
        "language_model.cls.predictions.decoder.bias",
    }
    expected = {
        name: value
        for name, value in theirs.items()
        if not name.startswith(("clip.", "vision_encoder.")) and name not in repeated
    }
    ours = load_file(tmp_path / "model.safetensors")
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def test_how_images_are_read_is_kept_with_the_model(saved, tmp_path):
    model = published("compressed")
    recipe = dataclasses.replace(model.config.image, transparency="white", icc_profile="applied")
    other = dataclasses.replace(
        model,
        config=dataclasses.replace(model.config, image=recipe),
        backbone=dataclasses.replace(model.backbone, image=recipe),
    )
    save_model(tmp_path, other, "A card.\n")
    assert load_model(str(tmp_path)).config.image == recipe
    assert load_model(str(saved)).config.image == model.config.image
    formats = [json.loads((f / "config.json").read_text())["format"] for f in (saved, tmp_path)]
    assert formats == [1, 3]
    told = "| images | icc_profile applied, transparency white |"
    assert told in model_card(other) and "| images |" not in model_card(model)


def test_the_text_recipe_is_kept_with_the_model(saved, tmp_path):
    model = published("compressed")
    config = dataclasses.replace(model.config, text_recipe="as_written")
    other = dataclasses.replace(model, config=config)
    save_model(tmp_path, other, "A card.\n")
    assert load_model(str(tmp_path)).config == config
    raw, default = (read_json(folder / "config.json") for folder in (tmp_path, saved))
    assert (raw["format"], raw["text_recipe"]) == (6, "as_written")
    assert default["format"] == 1 and "text_recipe" not in default
    parts = (model.params, model.backbone.params)
    assert model_fingerprint(config, parts) != model_fingerprint(model.config, parts)
    change(tmp_path / "config.json", text_recipe="loud")
    told = r'config\.json: text_recipe "loud": published or as_written$'
    with pytest.raises(ValueError, match=told):
        load_model(str(tmp_path))


def test_captions_past_the_last_position_are_refused(folder):
    rows = read_json(folder / "config.json")["joint_encoder"]["max_position_embeddings"]
    most = rows - load_model(str(folder)).config.num_tokens - 1
    assert most > 63
    change(folder / "config.json", max_text_length=most)
    assert load_model(str(folder)).config.max_text_length == most
    change(folder / "config.json", max_text_length=most + 1)
    told = (
        rf"config\.json: max_text_length {most + 1}, .* take {rows + 1} positions, .* has {rows};"
    )
    with pytest.raises(ValueError, match=rf"{told} set max_text_length to {most}$"):
        load_model(str(folder))


def test_the_published_code_reads_neither_other_captions_nor_longer_ones(saved, tmp_path, caplog):
    model = published("compressed")
    config = dataclasses.replace(model.config, text_recipe="as_written")
    with pytest.raises(ValueError, match="has captions as written, of which the published code"):
        save_published(tmp_path / "a.pth", dataclasses.replace(model, config=config))
    assert not list(tmp_path.iterdir())
    config = dataclasses.replace(model.config, max_text_length=100)
    save_published(tmp_path / "a.pth", dataclasses.replace(model, config=config))
    assert "takes captions of up to 98 pieces, and the published code cuts them after 61" in (
        caplog.text
    )


def test_the_backbone_is_copied_as_it_is_and_nothing_beside_it(tmp_path):
    source = tmp_path / "siglip"
    shutil.copytree(TINY / "siglip", source)
    (source / "optimizer.pt").write_bytes(b"not ours to hand on")
    checkpoint = torch.load(TINY / "local.pth", weights_only=True)["model"]
    without = {name: value for name, value in checkpoint.items() if not name.startswith("clip.")}
    torch.save({"model": without}, tmp_path / "local.pth")
    model = load_published(str(tmp_path / "local.pth"), str(source), str(TINY / "bert"))
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, "")
    copied = tmp_path / "model" / "backbone"
    assert {path.name for path in copied.iterdir()} == {
        path.name for path in (TINY / "siglip").iterdir()
    }
    for path in copied.iterdir():
        assert path.read_bytes() == (TINY / "siglip" / path.name).read_bytes(), path.name


def with_towers_of(source: Path, tmp_path: Path) -> Model:
    """The local checkpoint, whose frozen towers are those of a folder."""
    checkpoint = torch.load(TINY / "local.pth", weights_only=True)["model"]
    towers = ("clip.", "vision_encoder.")
    trained = {name: value for name, value in checkpoint.items() if not name.startswith(towers)}
    torch.save({"model": trained}, tmp_path / "trained.pth")
    return load_published(str(tmp_path / "trained.pth"), str(source), str(TINY / "bert"))


def in_every_format(folder: Path) -> None:
    """The whole file and two of other formats."""
    tensors = {n: torch.tensor(v) for n, v in Safetensors([folder / "model.safetensors"]).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    for name in ("tf_model.h5", "open_clip_model.safetensors", "model.safetensors.index.json"):
        (folder / name).write_text("{}")


def in_shards(folder: Path) -> None:
    """Shards, and a whole file of torch."""
    tensors = dict(Safetensors([folder / "model.safetensors"]))
    torch.save({name: torch.zeros(1) for name in tensors}, folder / "pytorch_model.bin")
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"model-0000{i}-of-00002.safetensors"
        save_file({n: np.array(tensors[n]) for n in part}, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(part, shard)
    write_json(folder / "model.safetensors.index.json", {"weight_map": where})
    (folder / "model.safetensors").unlink()


def of_torch_alone(folder: Path) -> None:
    in_every_format(folder)
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()


WHOLE = {"model.safetensors"}
SHARDS = {"model.safetensors.index.json"} | {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}


@pytest.mark.parametrize(
    "store, kept", [(in_every_format, WHOLE), (in_shards, SHARDS), (of_torch_alone, WHOLE)]
)
def test_one_set_of_weights_is_kept_and_needs_no_torch(store, kept, tmp_path):
    source, folder = tmp_path / "siglip", tmp_path / "model"
    shutil.copytree(TINY / "siglip", source)
    store(source)
    folder.mkdir()
    save_model(folder, with_towers_of(source, tmp_path), "")
    settings = {path.name for path in (TINY / "siglip").iterdir()} - WHOLE
    assert {path.name for path in (folder / "backbone").iterdir()} - settings == kept
    plain = load_backbone(str(TINY / "siglip"))
    assert_same(load_backbone(str(folder / "backbone")).params, plain.params)


def test_a_model_is_written_where_nothing_can_be_renamed_and_no_mode_set(tmp_path, monkeypatch):
    """As on a mounted bucket."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("chmod", "chown", "utime", "link", "replace", "rename", "fsync"):
        monkeypatch.setattr(os, name, refuse)
    for name in ("copystat", "copymode", "copy2"):
        monkeypatch.setattr(shutil, name, refuse)
    target = tmp_path / "runs" / "model"
    for _ in range(2):  # The second time in the place of the first
        with atomic_folder(target) as folder:
            save_model(folder, published("local"), "")
    assert_same(load_model(str(target)).params, published("local").params)
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    save_published(tmp_path / "back.pth", published("local"))
    assert (tmp_path / "back.pth").exists()


def test_a_backbone_that_the_checkpoint_carries_is_the_one_that_is_saved(tmp_path):
    checkpoint = torch.load(TINY / "local.pth", weights_only=True)
    name = "clip.vision_model.post_layernorm.weight"
    checkpoint["model"][name] = checkpoint["model"][name] + 1
    torch.save(checkpoint, tmp_path / "other.pth")
    model = published("local", tmp_path / "other.pth")
    plain = published("local")
    scale = model.backbone.params["vision"]["post_layernorm"]["scale"]
    np.testing.assert_array_equal(
        scale, plain.backbone.params["vision"]["post_layernorm"]["scale"] + 1
    )
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", model, "")
    assert_same(load_model(str(tmp_path / "model")).backbone.params, model.backbone.params)


def test_names_of_older_transformers_are_read(tmp_path):
    checkpoint = torch.load(TINY / "local.pth", weights_only=True)["model"]
    old = {
        name.replace("vision_encoder.", "vision_encoder.vision_model."): value
        for name, value in checkpoint.items()
    }
    assert old.keys() != checkpoint.keys()
    torch.save({"model": old, "config": {"num_compressed_tokens": 0}}, tmp_path / "old.pth")
    assert_same(published("local", tmp_path / "old.pth").params, published("local").params)


def test_a_workdir_is_read_through_its_model_folder(folder):
    (folder.parent / "config.json").write_text('{"steps": 10}')
    model = load_model(str(folder.parent))
    assert model.tokenizer == folder
    assert_same(model.params, published("compressed").params)


# --- folders that are something else, or broken ---------------------------------------------------


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not a model folder \(it has no config\.json\);"):
        load_model(str(folder))


def test_a_backbone_given_as_a_model():
    with pytest.raises(
        ValueError, match=r"siglip/config\.json: model_type is 'siglip', not 'edje'.*--model\.back"
    ):
        load_model(str(TINY / "siglip"))


def test_a_language_model_given_as_a_model():
    with pytest.raises(ValueError, match=r"bert/config\.json: model_type is 'bert', not 'edje'"):
        load_model(str(TINY / "bert"))


def test_a_language_model_given_as_the_backbone(folder):
    with pytest.raises(
        ValueError, match=r"bert/config\.json: model_type 'bert' is not supported as a backbone"
    ):
        load_published(str(TINY / "local.pth"), str(TINY / "bert"), str(TINY / "bert"))


def test_an_image_tower_of_timm_is_refused(folder):
    (folder / "backbone" / "config.json").write_text('{"architecture": "vit_base_patch16_siglip"}')
    with pytest.raises(ValueError, match=r"in timm's format \(vit_base_patch16_siglip\), an image"):
        load_model(str(folder))


def test_a_naflex_backbone_is_refused(folder):
    change(folder / "backbone" / "config.json", model_type="siglip2")
    with pytest.raises(ValueError, match=r"config\.json: a SigLIP2 NaFlex model.*; use one"):
        load_model(str(folder))


def test_tensors_that_a_backbone_has_no_place_for_are_listed(folder):
    path = folder / "backbone" / "model.safetensors"
    tensors = dict(Safetensors([path]))
    vision, one = "vision_model.embeddings.", np.zeros(3, np.float32)
    spoiled = {**tensors, vision + "position_ids": np.arange(4), "lora.down": one}
    save_file(spoiled, str(path))
    with pytest.raises(WeightMismatch) as error:
        load_model(str(folder))
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "not in the model: lora.down"
    ]


def test_a_trainers_names_do_not_get_into_a_model_folder(tmp_path):
    source, target = tmp_path / "siglip", tmp_path / "copy"
    shutil.copytree(TINY / "siglip", source)
    tensors = load_file(source / "model.safetensors")
    save_file({f"module.{name}": v for name, v in tensors.items()}, source / "model.safetensors")
    copy_backbone(load_backbone(str(source)), target)
    copied = load_file(target / "model.safetensors")
    assert copied.keys() == tensors.keys()
    assert all((copied[name] == tensors[name]).all() for name in tensors)


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    for path in (TINY / "siglip").glob("*config.json"):
        (tmp_path / path.name).write_text(path.read_text("utf-8"), "utf-8-sig")
    assert read_backbone_config(tmp_path) == read_backbone_config(TINY / "siglip")


def test_a_backbone_given_as_the_language_model():
    with pytest.raises(
        ValueError, match=r"'siglip' is not supported as a joint encoder; use a BERT"
    ):
        load_language_model(str(TINY / "siglip"))


@pytest.mark.parametrize("name", ["head.weight", "vision_projection.query"])
def test_a_checkpoint_of_something_else(name, tmp_path):
    torch.save({"model": {name: torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: holds no vision_projection; is this an ED"):
        published("local", tmp_path / "other.pth")


def test_a_format_from_the_future(folder):
    change(folder / "config.json", format=99)
    with pytest.raises(
        ValueError, match=r"config\.json: format 99 is newer than .* reads \(8\); update edje_jax"
    ):
        load_model(str(folder))


def test_a_config_that_is_not_json(folder):
    (folder / "config.json").write_text('{"model_type": "edje",')
    with pytest.raises(BadJson, match=r"model/config\.json: not valid JSON \(.*line 1"):
        load_model(str(folder))


@pytest.mark.parametrize("part", [".", "backbone"])
def test_truncated_weights(part, folder):
    path = folder / part / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadWeights, match=r"model\.safetensors: damaged or truncated .* again"):
        load_model(str(folder))


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadWeights, match=r"no weights here; looked for model\.safetensors and"):
        load_model(str(folder))


def test_weights_of_another_shape(folder):
    adapter = {"kind": "compress", "num_tokens": 7, "intermediate_size": 80}
    change(folder / "config.json", adapter=adapter)
    with pytest.raises(
        WeightMismatch, match=r"vision_projection\.query gives \(1, 6, 48\).* is \(1, 7, 48\)"
    ):
        load_model(str(folder))


def test_a_backbone_and_its_preprocessor_that_disagree(folder):
    size = {"height": 48, "width": 48}
    change(folder / "backbone" / "preprocessor_config.json", size=size)
    with pytest.raises(ValueError, match=r"makes images of 48 px, the model takes 32 px; corr"):
        load_model(str(folder))


def test_a_backbone_that_is_a_hub_id_out_of_reach(folder):
    shutil.rmtree(folder / "backbone")
    change(folder / "config.json", backbone="nobody/no-such-backbone")
    with pytest.raises(
        FileNotFoundError,
        match=r"nobody/no-such-backbone: the backbone is neither a folder here nor a hub id that",
    ):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name", ["./nobody", "./nobody/x", "/no/such/folder", "~/no/such/folder", "a/b/c", "x/edje.pth"]
)
def test_a_name_that_cannot_be_a_hub_id_is_not_looked_up(name):
    with pytest.raises(FileNotFoundError, match=f"{name}: the model: no such folder$"):
        load_model(name)
