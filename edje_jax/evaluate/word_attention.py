"""Attention of each word of a caption over an image: its patches, or the places of a finer grid.

Of a video the frame is shown that the words attend to most.
"""

from functools import partial

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from edje_jax.data.frames import record_frames
from edje_jax.data.images import decode_record, normalise_all, resize
from edje_jax.evaluate.gallery import EncodedGallery
from edje_jax.models.attention_maps import patch_attention
from edje_jax.models.frames import encode_vision
from edje_jax.reports.word_maps import WordMaps
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.types import Frames, Source


def word_maps(runtime: JaxRuntime, image: Image.Image, caption: str) -> WordMaps:
    """Attention maps of each word over the grid that the adapter reads: the mean over its pieces,
    without a class token's share."""
    return frame_word_maps(runtime, resize(image, runtime.config.image)[None], caption)


def frame_word_maps(
    runtime: JaxRuntime, frames: UInt8[np.ndarray, "f s s 3"], caption: str
) -> WordMaps:
    """Attention maps of each word, as `word_maps`, over the frame of a video that the words attend
    to most; an image is one frame.

    Args:
        frames: resized, no more than the model reads.
    """
    config = runtime.config
    places = runtime.joint_tokenizer.words(caption)
    images = frames
    if config.video:
        pixels = np.zeros((1, config.frames, *frames.shape[1:]), np.uint8)
        pixels[0, : len(frames)] = frames
        images = Frames(pixels, np.arange(config.frames)[None] < len(frames))
    rows = _patch_attention(
        runtime.backbone,
        runtime.model,
        config.image,
        runtime.backbone_params,
        runtime.params,
        runtime.joint_tokenizer([caption]),
        images,
    )[0]
    places_of_grid = config.backbone.vision.num_patches * config.adapter.upsampling**2
    grids = np.asarray(rows, np.float32).reshape(len(rows), config.frames, -1)
    grids = grids[..., -places_of_grid:]
    side = round(places_of_grid**0.5)
    of_words = [grids[pieces].mean(axis=0) for _, pieces in places]
    words = np.array(of_words).reshape(len(places), config.frames, side, side)
    moment = int(words.sum(axis=(0, 2, 3)).argmax()) if places else 0
    words = words[:, moment]
    shares = words.sum(axis=(1, 2), keepdims=True)
    return WordMaps(frames[moment], [word for word, _ in places], words / shares)


def caption_word_maps(
    runtime: Runtime, encoded: EncodedGallery, source: Source, q: int
) -> WordMaps:
    """Attention maps of the words of a gallery's caption q over the image it describes; only the
    runtime of JAX tells attention.

    Raises:
        BadImage: the image can no longer be read.
        ValueError: it is another runtime.
    """
    if not isinstance(runtime, JaxRuntime):
        raise ValueError(f"{type(runtime).__name__} tells no attention; take the runtime jax")
    gallery = encoded.gallery
    record = int(encoded.record[int(gallery.caption_image[q])])
    caption, config = gallery.captions[q], runtime.config
    if config.video:
        frames = record_frames(source, record, config.video.sampling, config.image)
        return frame_word_maps(runtime, frames, caption)
    return word_maps(runtime, decode_record(source, record, config.image), caption)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _patch_attention(backbone, model, recipe, backbone_params, params, ids, images):
    vision = encode_vision(
        backbone.bind({"params": backbone_params}), normalise_all(images, recipe)
    )
    return patch_attention(model, params, ids, vision.tokens)
