"""Hugging Face folders of dual encoders: config, parameters, image recipe, tokenizer."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config import BackboneConfig, ImageRecipe
from edje_jax.models.siglip import Siglip
from edje_jax.weights import siglip
from edje_jax.weights.files import open_weights, read_json, write_json, write_safetensors
from edje_jax.weights.hub import resolve
from edje_jax.weights.mapping import to_ours, to_theirs
from edje_jax.weights.preprocessor import recipe_from_preprocessor, recipe_to_preprocessor

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)


@dataclass(frozen=True)
class Backbone:
    """A dual encoder read from a folder."""

    folder: Path
    config: BackboneConfig
    image: ImageRecipe
    params: PyTree[np.ndarray]
    from_folder: bool = True
    """Whether `params` are those of the folder; a published checkpoint carries its own."""


def load_backbone(name: str) -> Backbone:
    """Read a Hugging Face SigLIP or SigLIP2 folder, or fetch it by hub id.

    Raises:
        FileNotFoundError: no such folder or id.
        BadWeights, WeightMismatch: the weights are damaged or do not fit the config.
        ValueError: not a supported kind of model.
    """
    folder = resolve(name, "the backbone")
    config, image = read_backbone_config(folder)
    tensors = open_weights(folder)
    params = to_ours(siglip.rules(config), tensors, expected_params(config), str(folder))
    return Backbone(folder, config, image, params)


def read_backbone_config(folder: Path) -> tuple[BackboneConfig, ImageRecipe]:
    """`config.json` and `preprocessor_config.json`, which must agree on the picture's size."""
    path = folder / "config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: missing; is this a Hugging Face model folder?") from error
    tokenizer = folder / "tokenizer_config.json"
    told = read_json(tokenizer) if tokenizer.exists() else {}
    config = siglip.read_config(raw, str(path), told)
    image = recipe_from_preprocessor(folder)
    if image.size != config.vision.image_size:
        raise ValueError(
            f"{folder}: preprocessor_config.json makes pictures of {image.size} px, the model"
            f" takes {config.vision.image_size} px; correct the one that is wrong"
        )
    return config, image


def save_backbone(
    folder: Path, config: BackboneConfig, image: ImageRecipe, params: PyTree, tokenizer: Path
) -> None:
    """Write a folder that transformers' `SiglipModel`, `AutoTokenizer` and image processor read."""
    write_json(folder / "config.json", siglip.write_config(config))
    write_json(folder / "preprocessor_config.json", recipe_to_preprocessor(image))
    copy_tokenizer(tokenizer, folder)
    tensors = to_theirs(siglip.rules(config), jax.device_get(params))
    write_safetensors(folder / "model.safetensors", tensors)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy whatever tokenizer files a folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def expected_params(config: BackboneConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Tree, shapes and dtypes of a backbone's parameters; nothing is allocated."""
    pixels = jnp.zeros((1, config.vision.image_size, config.vision.image_size, 3))
    ids = jnp.zeros((1, config.text.max_position_embeddings), jnp.int32)
    return jax.eval_shape(Siglip(config).init, jax.random.key(0), pixels, ids)["params"]
