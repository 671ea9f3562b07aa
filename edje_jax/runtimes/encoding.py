"""Images or videos -> compressed tokens and embeddings, by one jitted program a shape."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, UInt8

from edje_jax.config.model import EdjeConfig
from edje_jax.data.images import normalise_all
from edje_jax.models.frames import encode_vision
from edje_jax.runtimes.dual_encoder import IMAGE_BATCHES
from edje_jax.types import Frames

Images = UInt8[np.ndarray, "n s s 3"] | Float32[np.ndarray, "n s s 3"] | Frames
"""Resized images, pixels that are normalised already, or frames of either."""


def count_images(images: Images) -> int:
    """Number of images, or of videos."""
    return len(images.present if isinstance(images, Frames) else images)


def take_images(images: Images, rows: Int[np.ndarray, " b"]) -> Images:
    """Some of the images or videos."""
    return jax.tree.map(lambda leaf: leaf[rows], images)


def batch_sizes(images: Images) -> tuple[int, ...]:
    """Images, or videos, of the batches that are encoded: as many videos as hold those images."""
    frames = images.present.shape[1] if isinstance(images, Frames) else 1
    return tuple(sorted({max(size // frames, 1) for size in IMAGE_BATCHES}))


def check_images(config: EdjeConfig, images: Images) -> None:
    """Refuse frames that a model does not read.

    Raises:
        ValueError: the model reads images alone, or fewer frames.
    """
    if not isinstance(images, Frames):
        return
    if not config.video:
        raise ValueError("this model reads images and no videos; give an array [n, s, s, 3]")
    if (frames := images.present.shape[1]) > config.frames:
        raise ValueError(
            f"{frames} frames a video, and the model reads {config.frames}; choose frames by the"
            " model's own sampling, config.video.sampling"
        )


@partial(jax.jit, static_argnums=(0, 1, 2))
def encode_batch(backbone, model, recipe, backbone_params, params, images):
    """(tokens [b, m, d] in float32, embeddings [b, e]); a model of videos takes images too."""
    pixels = images if recipe is None else normalise_all(images, recipe)
    image = encode_vision(backbone.bind({"params": backbone_params}), pixels)
    tokens, config = image.tokens, model.config
    if config.video and not isinstance(images, Frames):
        tokens = tokens[:, None]
    tokens = model.bind({"params": params}).compress(tokens).astype(jnp.float32)
    missing = config.num_tokens - tokens.shape[1]
    return jnp.pad(tokens, ((0, 0), (0, missing), (0, 0))), image.embedding
