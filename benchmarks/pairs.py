"""Full-size model of random weights, and pairs of captions and tokens for it; free of PyTorch."""

import dataclasses
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.calibration import UNTUNED
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    InferencePrecision,
    TextConfig,
    VisionConfig,
)
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.weights.edje import expected_params as expected_edje_params
from edje_jax.weights.folder import load_model, save_model

CLS, SEP, PAD = 101, 102, 0
CONFIG = EdjeConfig(
    BackboneConfig(
        "siglip",
        VisionConfig(1024, 4096, 24, 16, image_size=384, patch_size=16),
        TextConfig(projection_size=1024),
    ),
    AdapterConfig("compress", 64),
    BertConfig(initializer_range=0.05),  # Wide enough that logits differ from pair to pair
)

TINY = EdjeConfig(
    BackboneConfig("siglip", VisionConfig(32, 64, 2, 2, 32, 16), TextConfig(projection_size=32)),
    AdapterConfig("compress", 4, 64),
    BertConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        initializer_range=0.2,
    ),
)  # fmt: skip
"""Shapes with which a benchmark shows that it works."""


@dataclass(frozen=True)
class Settings:
    """Work that all sides of a run do."""

    folder: str
    """Folder with a model folder for each layout of ours."""
    queries: int = 2
    k: int = 64
    images: int = 4
    """Images that a vision tower reads at once."""
    tiny: bool = False

    @classmethod
    def read(cls, text: str) -> "Settings":
        """Settings of a worker's command line."""
        return cls(**json.loads(text))

    @property
    def config(self) -> EdjeConfig:
        """Shapes of EDJE, whose backbone is the full one."""
        return TINY if self.tiny else CONFIG

    def model(self, layout: str) -> Path:
        """Model folder of a layout."""
        return Path(self.folder) / layout


class Pairs:
    """Random weights, captions, and each query's candidates.

    Args:
        queries: number of captions.
        k: candidates of each.
        config: shapes of the model.
        words: fewest and most words of a caption.
    """

    def __init__(
        self,
        queries: int,
        k: int,
        config: EdjeConfig = CONFIG,
        words: tuple[int, int] = (8, 20),
    ):
        rng = np.random.default_rng(0)
        self.queries, self.k, self.config = queries, k, config
        self.ids = np.full((queries, config.max_text_length), PAD, np.int32)
        for row in self.ids:
            # About 1.2 pieces a word, and at most as many as fit.
            pieces = int(rng.integers(words[0], words[1] + 1) * 1.2)
            pieces = min(pieces, config.max_text_length - 2)
            row[: pieces + 2] = [CLS, *rng.integers(1000, 30000, pieces), SEP]
        shape = (queries * k, config.num_tokens, config.joint_encoder.hidden_size)
        self.tokens = rng.normal(size=shape).astype(np.float32)
        self.owner = np.repeat(np.arange(queries), k)

    @cached_property
    def patches(self) -> np.ndarray:
        """Patch tokens [1, n, w] of an image that stands for all: no time depends on them."""
        backbone = self.config.backbone
        shape = (1, backbone.num_vision_tokens, backbone.vision.hidden_size)
        return np.random.default_rng(1).normal(size=shape).astype(np.float32)

    @cached_property
    def params(self) -> PyTree:
        """Weights of adapter and joint encoder."""
        deviation = self.config.joint_encoder.initializer_range
        return random_params(expected_edje_params(self.config), deviation)


def random_params(shapes: PyTree, deviation: float) -> PyTree:
    """Parameters of given shapes: norms of 1, biases of 0, the rest random, each by its name alone.

    Drawn on the host: compiling a model's own program for that can take a GPU over a minute.
    """

    def leaf(path: Any, shape: Any) -> jax.Array:
        if len(shape.shape) > 1:
            rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
            return jnp.asarray(deviation * rng.standard_normal(shape.shape, np.float32))
        # Its dtype in words: a weak one would change after a step, which would be compiled again.
        return jnp.full(shape.shape, float(path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def runtime_of(
    task: Pairs, backbone_params: PyTree | None = None, precision: InferencePrecision = "auto"
) -> JaxRuntime:
    """Runtime without tokenizers: pairs come as ids."""
    none: Any = None
    compute = Compute.of(precision)
    parts = task.params, backbone_params or {}
    return JaxRuntime(task.config, *parts, none, none, compute, compute)


def with_shipped_backbone(config: EdjeConfig) -> EdjeConfig:
    """Config whose images the shipped tiny backbone reads; the joint encoder stays as it is."""
    shipped = load_model("shapes-demo").config
    return dataclasses.replace(config, backbone=shipped.backbone, image=shipped.image)


def save_folder(task: Pairs, folder: Path) -> None:
    """Write a model folder with a task's weights, which has the shipped tiny backbone."""
    shipped = load_model("shapes-demo")
    model = dataclasses.replace(
        shipped, config=task.config, params=task.params, calibration=UNTUNED, heads=None
    )
    folder.mkdir(parents=True)
    save_model(folder, model, "A model of random weights, for benchmarks.\n")
