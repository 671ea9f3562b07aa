"""A runtime without JAX, for tests of whatever takes one, and images for it."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.models.token_formats import PackedTokens, unpack
from edje_jax.runtimes.base import Embedded, Encoded
from edje_jax.weights.model_stamp import model_stamp

T = TypeVar("T")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
CONFIG = EdjeConfig(
    BackboneConfig("siglip", VisionConfig(image_size=8), TextConfig(projection_size=3)),
    AdapterConfig(num_tokens=2),
    BertConfig(hidden_size=4),
    ImageRecipe(size=8),
)


@dataclasses.dataclass(frozen=True)
class ColourRuntime:
    """A runtime without JAX: an image is its mean colour, a text is the colours that it names.

    Of a config with codes, these are the signs of products with drawn vectors.
    """

    config: EdjeConfig = CONFIG

    def fingerprint(self) -> str:
        return hashlib.sha256(b"colours").hexdigest()[:32]

    def count_parameters(self) -> dict[str, int]:
        return {"offline": 0, "online": 0}

    @property
    def joint_tokenizer(self) -> Callable[[Sequence[str]], np.ndarray]:
        return lambda texts: np.array(
            [[name in text for name in COLOURS] for text in texts], np.int32
        ).reshape(-1, 3)

    def encode_images(self, images: np.ndarray) -> Encoded:
        return self.encode_pixels(images.astype(np.float32) / 255)

    def encode_pixels(self, pixel_values: np.ndarray) -> Encoded:
        colours = pixel_values.reshape(len(pixel_values), -1, 3).mean(axis=1)
        tokens = np.zeros((len(colours), 2, 4), np.float32)
        tokens[:, 1, :3] = colours
        unit = colours / np.linalg.norm(colours, axis=1, keepdims=True)
        return Encoded(tokens, unit, self._project(unit))

    def encode_each(
        self, batches: Iterable[T], images: Callable[[T], np.ndarray]
    ) -> Iterator[tuple[T, Encoded]]:
        return ((batch, self.encode_images(images(batch))) for batch in batches)

    def embed_texts(self, captions: Sequence[str]) -> np.ndarray:
        named = self.joint_tokenizer(captions).astype(np.float32)
        return named / np.maximum(np.linalg.norm(named, axis=1, keepdims=True), 1e-6)

    def encode_texts(self, captions: Sequence[str]) -> Embedded:
        embeddings = self.embed_texts(captions)
        return Embedded(embeddings, self._project(embeddings))

    def _project(self, embeddings: np.ndarray) -> np.ndarray:
        bits = max(self.config.code_lengths, default=0)
        kernel = np.random.default_rng(0).normal(size=(3, bits)).astype(np.float32)
        return (embeddings - np.float32(0.4)) @ kernel

    def score_pairs(
        self,
        ids: np.ndarray,
        tokens: Any,
        text_index: np.ndarray,
        image_index: np.ndarray,
        similarities: np.ndarray | None = None,
    ) -> np.ndarray:
        chosen = tokens[image_index]
        rows = unpack(chosen) if isinstance(chosen, PackedTokens) else chosen
        return 2 - np.abs(np.asarray(rows)[:, 1, :3] - ids[text_index]).sum(axis=1)

    def warm(self, tokens: Any) -> None: ...

    def warm_images(self) -> None: ...


class Colours:
    """A source of images of one colour each: red, green, blue, then mixed ones, with a caption."""

    def __init__(self, count: int):
        drawn = np.random.default_rng(0).integers(0, 256, (count, 3))
        self.colours = [*COLOURS.values(), *map(tuple, drawn.tolist())][:count]

    def __len__(self) -> int:
        return len(self.colours)

    def image_id(self, index: int) -> str:
        return f"{index:02d}"

    def captions(self, index: int) -> list[str]:
        return [f"{list(COLOURS)[int(np.argmax(self.colours[index]))]} {index}"]

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8), self.colours[index])


RUNTIME = ColourRuntime()
STAMP = model_stamp(CONFIG, RUNTIME.fingerprint(), "colours")
CODED = ColourRuntime(dataclasses.replace(CONFIG, first_stage=FirstStageConfig((8, 16, 64))))
"""The runtime of a model with codes."""
CODED_STAMP = model_stamp(CODED.config, CODED.fingerprint(), "colours")
