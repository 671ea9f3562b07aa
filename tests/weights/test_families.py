"""Families of backbones: a further one is a record, and a wrong config.json is told in one line.

Covers weights/families/base.py, weights/families/clip.py, weights/families/registry.py,
weights/families/siglip.py and weights/families/towers.py.
"""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from edje_jax.config.model import AdapterConfig, EdjeConfig
from edje_jax.models.siglip import Siglip
from edje_jax.search.reranker import Reranker
from edje_jax.weights import bert, edje
from edje_jax.weights.backbone import (
    expected_params,
    load_backbone,
    read_backbone_config,
    save_backbone,
)
from edje_jax.weights.families.base import Family
from edje_jax.weights.families.registry import FAMILIES, make_backbone
from edje_jax.weights.families.siglip import SIGLIP
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.mapping import under
from edje_jax.weights.preprocessor import recipe_from_preprocessor

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"

# --- one more family ------------------------------------------------------------------------------


class Mini(Siglip):
    """The module of a made-up family."""


MINI = Family(
    kind="mini",
    models="a Mini",
    module=Mini,
    rules=lambda config: under("", "mini.", SIGLIP.rules(config)),
    read_config=SIGLIP.read_config,
    write_config=lambda config: {**SIGLIP.write_config(config), "model_type": "mini"},
    pad_tokens={"Mini": "</s>"},
    image_processors={"Mini": {**SIGLIP.image_processors["Siglip"], "resample": 2}},
    token_layer=-2,
    refused={"mini-video": "a Mini of videos; use one of images"},
)


@pytest.fixture
def mini(monkeypatch) -> None:
    """The registry with the made-up family in it."""
    monkeypatch.setitem(FAMILIES, "mini", MINI)


def random_like(expected) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: 0.1 * rng.standard_normal(x.shape).astype(np.float32), expected)


def test_a_family_in_the_registry_goes_from_a_folder_to_tokens_and_embeddings(mini, tmp_path):
    original = load_backbone(str(TINY / "siglip"))
    config = dataclasses.replace(original.config, kind="mini")
    params = random_like(expected_params(config))
    source, folder = tmp_path / "mini", tmp_path / "model"
    source.mkdir()
    folder.mkdir()
    save_backbone(source, config, original.image, params, TINY / "siglip")
    assert all(name.startswith("mini.") for name in load_file(source / "model.safetensors"))
    backbone = load_backbone(str(source))
    assert (backbone.config.kind, backbone.config.token_layer) == ("mini", -2)
    assert backbone.config.vision == config.vision
    assert type(make_backbone(backbone.config)) is Mini
    jax.tree.map(np.testing.assert_array_equal, backbone.params, params)

    joint = bert.load_language_model(str(TINY / "bert")).config
    whole = EdjeConfig(backbone.config, AdapterConfig("compress", 4, 32), joint, backbone.image)
    trained = random_like(edje.expected_params(whole))
    save_model(folder, Model(whole, trained, backbone, TINY / "bert", "test"), "A card.\n")
    reranker = Reranker.from_pretrained(folder)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))
    tokens = reranker.encode_images([image])
    assert tokens.shape == (1, 4, joint.hidden_size) and np.isfinite(tokens).all()
    np.testing.assert_allclose(np.linalg.norm(reranker.embed_texts(["a dog"])), 1, atol=1e-5)


def test_messages_and_image_recipes_know_a_family_in_the_registry(mini, tmp_path):
    path = tmp_path / "config.json"
    for kind, message in (
        ("bert", "model_type 'bert' is not supported .* or a CLIP .*, or a Mini in Hugging Face's"),
        (["mini"], r"model_type \['mini'\] is not supported as a backbone"),
        ("mini-video", "a Mini of videos; use one of images"),
    ):
        path.write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ValueError, match=rf"config\.json: {message}"):
            read_backbone_config(tmp_path)
    recipe = tmp_path / "preprocessor_config.json"
    recipe.write_text(json.dumps({"image_processor_type": "MiniImageProcessorFast"}))
    assert recipe_from_preprocessor(tmp_path).resample == "bilinear"
    recipe.write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    with pytest.raises(ValueError, match="a CLIPImageProcessor or a MiniImageProcessor"):
        recipe_from_preprocessor(tmp_path)


# --- values of a config.json ----------------------------------------------------------------------

SIZE, ACTIVATION = "a whole number above 0", "one of gelu, gelu_pytorch_tanh, quick_gelu"


@pytest.mark.parametrize("kind", ["siglip", "clip"])
@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("vision_config.hidden_size", "48", SIZE),
        ("vision_config.patch_size", [8, 8], SIZE),
        ("vision_config.image_size", 0, SIZE),
        ("text_config.num_hidden_layers", 2.0, SIZE),
        ("text_config.vocab_size", True, SIZE),
        ("text_config.layer_norm_eps", "1e-6", "a number"),
        ("vision_config.layer_norm_eps", float("nan"), "a number"),
        ("vision_config.hidden_act", "relu", ACTIVATION),
        ("text_config.hidden_act", ["gelu"], ACTIVATION),
        ("text_config.eos_token_id", [1, 107], "a whole number"),
        ("vision_config", [48], "an object"),
        ("text_config", "base", "an object"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(kind, key, value, expected):
    section, _, name = key.partition(".")
    raw = {section: {name: value} if name else value}
    with pytest.raises(ValueError) as error:
        FAMILIES[kind].read_config(raw, "a/config.json", {})
    assert str(error.value) == (
        f'a/config.json: "{key}" is {value!r}, not {expected}; correct it, or fetch the model again'
    )


@pytest.mark.parametrize(
    "raw", [{"projection_dim": "512"}, {"vision_config_dict": {"hidden_size": "512"}}]
)
def test_clip_has_sizes_in_other_places_too(raw):
    with pytest.raises(ValueError, match=r'^a: "\w+(\.\w+)?" is \'512\', not a whole number above'):
        FAMILIES["clip"].read_config(raw, "a", {})


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_nulls_count_as_left_out_but_for_ids(kind):
    read = FAMILIES[kind].read_config
    plain = read({}, "a", {})
    assert read({"vision_config": None, "text_config": None}, "a", {}) == plain
    assert read({"text_config": {"hidden_size": None}}, "a", {}) == plain
    _, text = read({"text_config": {"eos_token_id": None}}, "a", {})
    assert text.eos_token_id is None


def test_the_file_of_a_folder_is_named(tmp_path):
    folder = shutil.copytree(TINY / "siglip", tmp_path / "siglip")
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["vision_config"]["num_attention_heads"] = "4"
    path.write_text(json.dumps(raw))
    message = f"{path}: \"vision_config.num_attention_heads\" is '4', not {SIZE}; correct it"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_backbone(str(folder))


# --- vision tokens --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated, message",
    [
        ({"token_layer": -9}, "token_layer -9: .*backbone has 2 layers; -1 is the last"),
        ({"token_layer": "last"}, "token_layer last: .*backbone has 2 layers"),
        ({"class_token": True}, "class_token: .*backbone is a siglip, which has none"),
        ([-1], ""),
    ],
)
def test_vision_tokens_that_a_model_folder_cannot_have_are_its_fault(stated, message, tmp_path):
    joint = bert.load_language_model(str(TINY / "bert")).config
    backbone = load_backbone(str(TINY / "siglip"))
    config = EdjeConfig(backbone.config, AdapterConfig("compress", 4, 32), joint, backbone.image)
    params = random_like(edje.expected_params(config))
    save_model(tmp_path, Model(config, params, backbone, TINY / "bert", "test"), "A card.\n")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vision_tokens": stated}))
    with pytest.raises(ValueError) as error:
        load_model(str(tmp_path))
    start = f'{path}: "vision_tokens" of {stated!r}: '
    assert re.match(re.escape(start) + message, str(error.value))
    assert str(error.value).endswith("; export the model again, or fetch it anew")
    assert "--model" not in str(error.value)
