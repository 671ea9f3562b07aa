"""Dual encoders against `transformers` at real widths: random weights, read through our loaders.

Depth and vocabulary are cut, widths, heads, patches and activations are those of the models that
people use. Two of them are also compared whole.

Covers models/clip.py and models/towers.py.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.models.towers import DualTower
from edje_jax.system.files import write_json
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.preprocessor import recipe_to_preprocessor
from tests.models.test_against_transformers import randomise, relative

DEPTH, WORDS = 2, 120
END = WORDS - 1


def tower(width: int, heads: int, inner: int, **rest) -> dict:
    return {
        "hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner, **rest,
    }  # fmt: skip


BASE, LARGE = (768, 12, 3072), (1024, 16, 4096)
SO400M, GIANT = (1152, 16, 4304), (1536, 16, 6144)
SIGLIPS = {
    "siglip B/16": (tower(*BASE, image_size=64, patch_size=16), tower(*BASE)),
    "siglip2 B/32": (tower(*BASE, image_size=64, patch_size=32), tower(*BASE)),
    "siglip2 L/16": (tower(*LARGE, image_size=64, patch_size=16), tower(*LARGE)),
    # 90 px are six patches of 14 and a rest, as 384 px are 27 and a rest.
    "siglip So400m/14": (tower(*SO400M, image_size=90, patch_size=14), tower(*SO400M)),
    "siglip2 So400m/16": (tower(*SO400M, image_size=64, patch_size=16), tower(*SO400M)),
    "siglip2 giant-opt/16": (
        tower(*GIANT, image_size=64, patch_size=16), tower(*SO400M, projection_size=1536)
    ),
}  # fmt: skip
CLIPS = {
    "clip B/32": (tower(*BASE, image_size=64, patch_size=32), tower(512, 8, 2048), 512),
    "clip B/16": (tower(*BASE, image_size=64, patch_size=16), tower(512, 8, 2048), 512),
    "clip L/14": (tower(*LARGE, image_size=56, patch_size=14), tower(*BASE), 768),
    "dfn H/14": (
        tower(1280, 16, 5120, image_size=56, patch_size=14, hidden_act="gelu"),
        tower(1024, 16, 4096, hidden_act="gelu", eos_token_id=END),
        1024,
    ),
    "metaclip H/14, padded with its end token": (
        tower(1280, 16, 5120, image_size=56, patch_size=14),
        tower(1024, 16, 4096, eos_token_id=END, pad_token_id=END),
        1024,
    ),
}


def make_siglip(name: str) -> SiglipModel:
    vision, text = SIGLIPS[name]
    cut = {"num_hidden_layers": DEPTH}
    text = {**text, **cut, "vocab_size": WORDS, "bos_token_id": None, "eos_token_id": None}
    return SiglipModel(SiglipConfig(vision_config={**vision, **cut}, text_config=text))


def make_clip(name: str) -> CLIPModel:
    vision, text, projection = CLIPS[name]
    cut = {"num_hidden_layers": DEPTH}
    # OpenAI's configs state 2 as the end token, which stands for the highest id.
    text = {"eos_token_id": 2, **text, **cut, "vocab_size": WORDS, "bos_token_id": 1}
    return CLIPModel(
        CLIPConfig(vision_config={**vision, **cut}, text_config=text, projection_dim=projection)
    )


def captions(length: int, end: int, pad: int, rows: int = 4) -> np.ndarray:
    """Ids that end at different places, the last of them at the end of the row."""
    ids = np.full((rows, length), pad, np.int32)
    rng = np.random.default_rng(1)
    for i, n in enumerate(np.linspace(3, length, rows).astype(int)):
        ids[i, :n] = [*rng.integers(3, end, n - 1), end]
    return ids


def write(model: torch.nn.Module, folder: Path, side: int) -> None:
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", recipe_to_preprocessor(ImageRecipe(side)))


@functools.partial(jax.jit, static_argnums=0)
def ours(model: DualTower, params: dict, pixels, ids) -> dict[str, jax.Array]:
    apply = functools.partial(model.apply, {"params": params})
    image = apply(pixels, method="encode_image")
    return {
        "vision tokens": image.tokens,
        "image embeddings": image.embedding,
        "text embeddings": apply(ids, method="encode_text"),
        "logits": apply(pixels, ids),
        **{f"hidden state {i}": state for i, state in enumerate(image.hidden_states)},
    }


@torch.no_grad()
def theirs(
    model: SiglipModel | CLIPModel, pixels: np.ndarray, ids: np.ndarray
) -> dict[str, torch.Tensor]:
    images = torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    out = model(torch.from_numpy(ids).long(), images)
    vision = model.vision_model(images, output_hidden_states=True)
    is_clip = isinstance(model, CLIPModel)
    return {
        "vision tokens": vision.hidden_states[-2][:, 1:] if is_clip else vision.last_hidden_state,
        "image embeddings": out.image_embeds,
        "text embeddings": out.text_embeds,
        "logits": out.logits_per_text,
        **{f"hidden state {i}": state for i, state in enumerate(vision.hidden_states)},
    }


def differences(model: SiglipModel | CLIPModel, folder: Path, images: int = 2) -> dict:
    """Relative difference of each output, our model read from what theirs saved."""
    side = model.config.vision_config.image_size
    write(model, folder, side)
    loaded = load_backbone(str(folder))
    pixels = np.random.default_rng(0).normal(size=(images, side, side, 3)).astype(np.float32)
    text = model.config.text_config
    end = text.vocab_size - 1 if text.eos_token_id in (2, None) else text.eos_token_id
    ids = captions(text.max_position_embeddings, end, text.pad_token_id)
    expected = theirs(model, pixels, ids)
    got = ours(make_backbone(loaded.config), loaded.params, pixels, ids)
    assert got.keys() == expected.keys()
    return {key: relative(got[key], expected[key]) for key in got}


@pytest.mark.parametrize("name", [*SIGLIPS, *CLIPS])
def test_every_family_equals_transformers(name, tmp_path):
    model = make_siglip(name) if name in SIGLIPS else make_clip(name)
    found = differences(randomise(model, std=0.05), tmp_path)
    assert max(found.values()) <= 1e-5, found


FULL = {
    "siglip2 B/16-384": lambda: SiglipModel(
        SiglipConfig(
            vision_config={"image_size": 384, "patch_size": 16},
            text_config={"vocab_size": 256_000, "bos_token_id": None, "eos_token_id": None},
        )
    ),
    "clip B/32": lambda: CLIPModel(CLIPConfig()),
}


@pytest.mark.extra
@pytest.mark.parametrize("name", FULL)
def test_whole_models_equal_transformers(name, tmp_path):
    found = differences(randomise(FULL[name](), std=0.03), tmp_path, images=1)
    assert max(found.values()) <= 1e-5, found


# --- which tokens ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of three layers, theirs and ours."""
    folder = tmp_path_factory.mktemp("clip")
    cut = {"num_hidden_layers": 3, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": 16, "patch_size": 4}
    text = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": WORDS}
    model = randomise(
        CLIPModel(CLIPConfig(vision_config={**vision, **cut}, text_config={**text, **cut}))
    )
    write(model, folder, 16)
    return model, load_backbone(str(folder))


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("layer", [-1, -2, -4])
def test_vision_tokens_of_any_layer(clip, layer, class_token):
    model, backbone = clip
    chosen = backbone.with_vision_tokens(layer, class_token)
    pixels = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    ids = captions(77, END, 1)
    tokens = ours(make_backbone(chosen.config), chosen.params, pixels, ids)["vision tokens"]
    expected = theirs(model, pixels, ids)[f"hidden state {4 + layer}"]
    assert tokens.shape[1] == chosen.config.num_vision_tokens
    assert relative(tokens, expected[:, 0 if class_token else 1 :]) <= 1e-5


def test_layers_that_are_not_there_are_refused(clip):
    _, backbone = clip
    for layer in (-5, 0, 1):
        with pytest.raises(ValueError, match=rf"^token_layer {layer}: .* has 3 layers; -1 is the"):
            backbone.with_vision_tokens(layer)
    siglip = dataclasses.replace(backbone, config=BackboneConfig())
    with pytest.raises(ValueError, match=r"^class_token: .* is a siglip, which has none"):
        siglip.with_vision_tokens(class_token=True)
