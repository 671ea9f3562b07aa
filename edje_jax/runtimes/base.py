"""The protocol of a runtime: both halves of a model behind plain array functions.

Offline, images become compressed tokens and embeddings; online, texts become embeddings, and pairs
of captions and tokens become match logits. Any number of rows goes in, NumPy comes out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from edje_jax.config.model import EdjeConfig
from edje_jax.types import Frames

IMAGE_BATCH = 32
"""Largest number of images in a batch of `Runtime.encode_each`."""

T = TypeVar("T")


class TokenTable(Protocol):
    """Compressed tokens of many images: an array, an index on disk, or any lookup like them."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Compressed tokens of some images: an array [k, m, d] or `PackedTokens`."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Compressed tokens and embeddings of n images."""

    tokens: Float[np.ndarray, "n m d"]
    """Compressed tokens; after the deferred layers, where the model has any."""
    embeddings: Float32[np.ndarray, "n e"]
    """First-stage embeddings, unit length."""
    projections: Float32[np.ndarray, "n bits"]
    """Numbers whose signs are the images' codes; [n, 0] of a model without codes."""


@dataclass(frozen=True)
class Embedded:
    """First-stage embeddings and projections of n captions, or of images that ask for captions."""

    embeddings: Float32[np.ndarray, "n e"]
    """Unit length."""
    projections: Float32[np.ndarray, "n bits"]
    """Numbers whose signs are codes; [n, 0] of a model without codes."""


def required_cosines(
    config: EdjeConfig, similarities: Float[np.ndarray, " p"] | None
) -> Float32[np.ndarray, " p"] | None:
    """Cosines for the similarity prior; None for a model without.

    Raises:
        ValueError: the model has one, and there are no cosines.
    """
    if not config.similarity_prior:
        return None
    if similarities is None:
        raise ValueError(
            "this model has a similarity prior: it scores a pair with the first stage's cosine"
            " of it; give similarities, products of embed_texts and embed_images"
        )
    return np.asarray(similarities, np.float32)


@runtime_checkable
class Runtime(Protocol):
    """A model that computes: `edje_jax.runtimes.jax.JaxRuntime` on JAX, and
    `edje_jax.runtimes.onnx.OnnxRuntime`, which scores pairs by ONNX Runtime."""

    @property
    def config(self) -> EdjeConfig:
        """Shapes of every part, the recipe by which images are read, and the text length."""
        ...

    def fingerprint(self) -> str:
        """32 hex digits over every parameter and shape of the model."""
        ...

    def count_parameters(self) -> dict[str, int]:
        """{"offline", "online"}: parameters of the part that encodes images and of the one that
        scores; deferred layers and the first stage's heads of captions count as online."""
        ...

    @property
    def joint_tokenizer(self) -> Callable[[Sequence[str]], Int[np.ndarray, "t l"]]:
        """Tokenizer of the joint encoder: captions -> [CLS] caption [SEP], padded to one length."""
        ...

    def encode_images(self, images: UInt8[np.ndarray, "n s s 3"] | Frames) -> Encoded:
        """Encode images that were resized to the recipe's size, or videos; tokens are float32.

        Raises:
            ValueError: frames of videos, and the model reads no or fewer frames.
        """
        ...

    def encode_pixels(self, pixel_values: Float32[np.ndarray, "n s s 3"]) -> Encoded:
        """Encode pixels that are normalised already; tokens are float32."""
        ...

    def encode_each(
        self, batches: Iterable[T], images: Callable[[T], UInt8[np.ndarray, "b s s 3"] | Frames]
    ) -> Iterator[tuple[T, Encoded]]:
        """Yield each batch with its images encoded, in order, while later ones are computed.

        Args:
            batches: whatever holds at most `IMAGE_BATCH` images.
            images: takes the resized images out of a batch.
        """
        ...

    def embed_texts(self, captions: Sequence[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings of texts, unit length."""
        ...

    def encode_texts(self, captions: Sequence[str]) -> Embedded:
        """First-stage embeddings of texts, and the projections that codes are made of."""
        ...

    def score_pairs(
        self,
        ids: Int[np.ndarray, "t l"],
        tokens: TokenTable,
        text_index: Int[np.ndarray, " p"],
        image_index: Int[np.ndarray, " p"],
        similarities: Float[np.ndarray, " p"] | None = None,
    ) -> Float32[np.ndarray, " p"]:
        """Match logits of the pairs (ids[text_index], tokens[image_index]).

        Args:
            ids: captions as `joint_tokenizer` gives them.
            tokens: only rows that pairs name are read.
            similarities: cosines of the pairs, which only a model with a similarity prior needs.

        Raises:
            ValueError: the model has a similarity prior, and there are no cosines.
        """
        ...

    def warm(self, tokens: TokenTable) -> None:
        """Compile whatever scoring of `tokens` and embedding of texts will need."""
        ...

    def warm_images(self) -> None:
        """Compile whatever encoding of images will need."""
        ...
