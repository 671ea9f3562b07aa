"""Hugging Face folders of dual encoders: config, parameters, image recipe, tokenizer."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.data.tokenizer import copy_tokenizer
from edje_jax.system.files import read_json, write_json
from edje_jax.weights.families.base import Family
from edje_jax.weights.families.registry import FAMILIES, make_backbone
from edje_jax.weights.hub import exported, resolve
from edje_jax.weights.mapping import Rule, to_ours, to_theirs
from edje_jax.weights.other_formats import other_format
from edje_jax.weights.preprocessor import recipe_from_preprocessor, recipe_to_preprocessor
from edje_jax.weights.tensors import open_weights, write_safetensors


@dataclass(frozen=True)
class Backbone:
    """A dual encoder read from a folder."""

    folder: Path
    config: BackboneConfig
    image: ImageRecipe
    params: PyTree[np.ndarray]
    from_folder: bool = True
    """Whether `params` are those of the folder; a published checkpoint carries its own."""

    def with_vision_tokens(
        self,
        token_layer: int | None = None,
        class_token: bool = False,
        earlier_layers: Sequence[int] = (),
    ) -> "Backbone":
        """The backbone with its vision tokens taken from a layer, or its family's own layer, and
        beside it from earlier ones.

        Raises:
            ValueError: there is no such layer, or no class token. The message begins with the name
                of the argument, for the caller to put before it where the value stands.
        """
        family, layers = FAMILIES[self.config.kind], self.config.vision.num_hidden_layers
        layer = family.token_layer if token_layer is None else token_layer
        for name, each in (("token_layer", [layer]), ("earlier_layers", earlier_layers)):
            for one in each:
                if one not in range(-layers - 1, 0):
                    raise ValueError(
                        f"{name} {one}: {self.folder} has {layers} layers; -1 is the last,"
                        f" {-layers - 1} what goes into the first"
                    )
        if class_token and not family.has_class_token:
            raise ValueError(f"class_token: {self.folder} is a {family.kind}, which has none")
        config = dataclasses.replace(
            self.config,
            token_layer=layer,
            class_token=class_token,
            earlier_layers=tuple(earlier_layers),
        )
        return dataclasses.replace(self, config=config)

    def shares_params_of(self, other: "Backbone") -> bool:
        """Whether both have the very same parameters, whatever folders they come from."""
        if jax.tree.structure(self.params) != jax.tree.structure(other.params):
            return False
        return all(map(np.array_equal, jax.tree.leaves(self.params), jax.tree.leaves(other.params)))


def load_backbone(name: str) -> Backbone:
    """Read a Hugging Face SigLIP, SigLIP2 or CLIP folder or the workdir of a training run that made
    one, or fetch it by hub id.

    Raises:
        FileNotFoundError: no such folder or id.
        BadWeights, WeightMismatch: the weights are damaged or do not fit the config.
        ValueError: not a supported kind of model.
    """
    folder = exported(resolve(name, "the backbone"))
    config, image = read_backbone_config(folder)
    tensors = open_weights(folder)
    rules = backbone_rules(config)
    known = {rule.theirs for rule in rules}
    # Older files kept a range of numbers beside the position embeddings.
    extra = [n for n in tensors if n not in known and not n.endswith(".position_ids")]
    params = to_ours(rules, tensors, expected_params(config), str(folder), extra)
    return Backbone(folder, config, image, params)


def backbone_rules(config: BackboneConfig) -> list[Rule]:
    """The table of a backbone's parameters."""
    return FAMILIES[config.kind].rules(config)


def read_backbone_config(folder: Path) -> tuple[BackboneConfig, ImageRecipe]:
    """`config.json` and `preprocessor_config.json`, which must agree on the image's size."""
    path = folder / "config.json"
    try:
        raw = read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: missing; is this a Hugging Face model folder?{other_format(folder)}"
        ) from error
    tokenizer = folder / "tokenizer_config.json"
    told = read_json(tokenizer) if tokenizer.exists() else {}
    family = _family(raw, path)
    vision, text = family.read_config(raw, str(path), told)
    if (pad := _pad_token_id(folder, told)) is not None:
        text = dataclasses.replace(text, pad_token_id=pad)
    config = BackboneConfig(family.kind, vision, text, family.token_layer)
    image = recipe_from_preprocessor(folder)
    if image.size != config.vision.image_size:
        raise ValueError(
            f"{folder}: preprocessor_config.json makes images of {image.size} px, the model"
            f" takes {config.vision.image_size} px; correct the one that is wrong"
        )
    return config, image


def save_backbone(
    folder: Path, config: BackboneConfig, image: ImageRecipe, params: PyTree, tokenizer: Path
) -> None:
    """Write a folder that transformers' model of the family, tokenizer and image processor read."""
    write_json(folder / "config.json", FAMILIES[config.kind].write_config(config))
    write_json(folder / "preprocessor_config.json", recipe_to_preprocessor(image))
    copy_tokenizer(tokenizer, folder)
    tensors = to_theirs(backbone_rules(config), jax.device_get(params))
    write_safetensors(folder / "model.safetensors", tensors)


def expected_params(config: BackboneConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Tree, shapes and dtypes of a backbone's parameters; nothing is allocated."""
    pixels = jnp.zeros((1, config.vision.image_size, config.vision.image_size, 3))
    ids = jnp.zeros((1, config.text.max_position_embeddings), jnp.int32)
    return jax.eval_shape(make_backbone(config).init, jax.random.key(0), pixels, ids)["params"]


def _pad_token_id(folder: Path, told: dict[str, Any]) -> int | None:
    """The id that a folder's tokenizer pads with, if its files say so.

    It goes before config.json's, which often keeps a default of another family: the text tower
    was trained on what its tokenizer made.
    """
    kind = str(told.get("tokenizer_class", ""))
    known = (pair for family in FAMILIES.values() for pair in family.pad_tokens.items())
    default = next((pad for start, pad in known if kind.startswith(start)), None)
    name = told.get("pad_token") or default
    name = name.get("content") if isinstance(name, dict) else name
    added = [{"id": k, **v} for k, v in told.get("added_tokens_decoder", {}).items()]
    if not added and (folder / "tokenizer.json").exists():
        added = read_json(folder / "tokenizer.json").get("added_tokens", [])
    return next((int(token["id"]) for token in added if token["content"] == name), None)


def _family(raw: dict[str, Any], path: Path) -> Family:
    """The family that a config.json is of.

    Raises:
        ValueError: none that is supported.
    """
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    refused = {k: why for family in FAMILIES.values() for k, why in family.refused.items()}
    if isinstance(kind, str) and kind in refused:
        raise ValueError(f"{path}: {refused[kind]}")
    if "architecture" in raw and not kind:
        raise ValueError(
            f"{path}: in timm's format ({raw['architecture']}), an image tower alone; use the"
            " SigLIP or CLIP that it was taken from, in Hugging Face's format"
        )
    models = ", or ".join(family.models for family in FAMILIES.values())
    raise ValueError(
        f"{path}: model_type {kind!r} is not supported as a backbone; use {models} in Hugging"
        " Face's format"
    )
