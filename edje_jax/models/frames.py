"""Videos frame by frame, with the image model's weights (VEDJE, OpenReview ZqB0Ab4juk).

    frames ── frozen backbone ── vision tokens [f, n, w] ── adapter, each frame alone ── [f m, d]

The joint encoder reads the rows of all frames as it reads an image's; their order is told by its
positions alone. The embedding of the first stage is the mean of the frames', at unit length.

A frame that is not there is *all zeros*, as vision tokens, as compressed tokens and in the store:
`present_rows` tells such rows, which no layer attends to. No row of a frame is zero, as a bias is
added last. (The published code reads a frame of a short video more than once; leaving it out is
ours.)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edje_jax.config.frames import FramePooling
from edje_jax.config.model import EdjeConfig
from edje_jax.models.towers import DualTower
from edje_jax.types import Frames


class EncodedVision(NamedTuple):
    """Outputs of the frozen backbone for images or videos."""

    tokens: Float[Array, "b *f n w"]
    embedding: Float[Array, "b e"]
    """Unit length."""


def encode_vision(backbone: DualTower, images: Float[Array, "b s s 3"] | Frames) -> EncodedVision:
    """Run a backbone that has its parameters over images or frames, whose pixels are normalised."""
    if not isinstance(images, Frames):
        found = backbone.encode_image(images)
        return EncodedVision(found.tokens, found.embedding)
    pixels = images.pixels
    batch, frames = images.present.shape
    if frames == 1:
        found = backbone.encode_image(pixels[:, 0])
        return EncodedVision(found.tokens[:, None], found.embedding)
    found = backbone.encode_image(pixels.reshape(batch * frames, *pixels.shape[2:]))
    tokens = found.tokens.reshape(batch, frames, *found.tokens.shape[1:])
    tokens = jnp.where(images.present[..., None, None], tokens, 0)
    embeddings = found.embedding.reshape(batch, frames, -1)
    return EncodedVision(tokens, mean_embedding(embeddings, images.present))


def mean_embedding(
    embeddings: Float[Array, "b f e"], present: Bool[Array, "b f"]
) -> Float[Array, "b e"]:
    """Mean of the frames' embeddings, at unit length."""
    total = jnp.sum(jnp.where(present[..., None], embeddings, 0), axis=1)
    return total / jnp.maximum(jnp.linalg.norm(total, axis=-1, keepdims=True), 1e-12)


def adapt_frames(
    adapter: Callable[[Array], Array], vision_tokens: Float[Array, "b f n w"], pooling: FramePooling
) -> Float[Array, "b m d"]:
    """Compressed tokens of videos: those of each frame in turn, or their mean over the frames.

    A single frame is there, and its tokens are an image's, bit for bit.
    """
    batch, frames = vision_tokens.shape[:2]
    if frames == 1:
        return adapter(vision_tokens[:, 0])
    present = jnp.any(vision_tokens != 0, axis=(2, 3))
    rows = adapter(vision_tokens.reshape(batch * frames, *vision_tokens.shape[2:]))
    rows = rows.reshape(batch, frames, *rows.shape[1:])
    rows = jnp.where(present[..., None, None], rows, 0)
    if pooling == "mean":
        count = jnp.maximum(jnp.sum(present.astype(rows.dtype), axis=1), 1)
        return jnp.sum(rows, axis=1) / count[:, None, None]
    return rows.reshape(batch, -1, rows.shape[-1])


def present_rows(config: EdjeConfig, tokens: Float[Array, "b m d"]) -> Bool[Array, "b m"]:
    """Which rows of compressed tokens are of a frame that is there; all of them of an image."""
    if not config.may_miss_frames:
        return jnp.ones(tokens.shape[:2], bool)
    return jnp.any(tokens != 0, axis=-1)
