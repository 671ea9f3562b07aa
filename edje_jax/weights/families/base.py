"""The record of a family of backbones: its module, its weight table, its files' facts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edje_jax.config.model import BackboneConfig, TextConfig, VisionConfig
from edje_jax.models.towers import DualTower
from edje_jax.weights.mapping import Rule


@dataclass(frozen=True)
class Family:
    """A family of dual encoders in Hugging Face's format.

    A further family is its module in `edje_jax.models`, a file with its record in this folder, and
    a line of `registry`.
    """

    kind: str
    """`model_type` in config.json, and `BackboneConfig.kind`."""
    models: str
    """Models of the family, as a message lists them."""
    module: type[DualTower]
    rules: Callable[[BackboneConfig], list[Rule]]
    """Weight table of every parameter."""
    read_config: Callable[[dict[str, Any], str, dict[str, Any]], tuple[VisionConfig, TextConfig]]
    """(config.json, its path for messages, tokenizer_config.json) -> shapes of the towers;
    ValueError for a value that the family cannot have."""
    write_config: Callable[[BackboneConfig], dict[str, Any]]
    """A config.json that transformers reads."""
    pad_tokens: Mapping[str, str]
    """Beginning of a tokenizer class's name -> pad token of a tokenizer whose files name none; the
    first that fits counts."""
    image_processors: Mapping[str, dict[str, Any]]
    """Name of an image processor class without "ImageProcessor" -> what a file leaves out."""
    token_layer: int = -1
    """Layer that vision tokens come from by default, counted from the end."""
    has_class_token: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    """`model_type` of related models that are not read -> why, and what to use instead."""
