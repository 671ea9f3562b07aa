"""Attention of each word of a caption over an image: its patches, or the places of a finer grid."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
from PIL import Image

from edje_jax.data.images import decode_record, normalise, resize
from edje_jax.evaluate.gallery import EncodedGallery
from edje_jax.models.attention_maps import patch_attention
from edje_jax.reports.word_maps import WordMaps
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.types import Source


def word_maps(runtime: JaxRuntime, image: Image.Image, caption: str) -> WordMaps:
    """Attention maps of each word over the grid that the adapter reads: the mean over its pieces,
    without a class token's share. A model of videos sees the image as it would without frames."""
    if runtime.config.video:
        runtime = replace(runtime, config=replace(runtime.config, video=None))
    pixels = resize(image, runtime.config.image)
    places = runtime.joint_tokenizer.words(caption)
    rows = _patch_attention(
        runtime.backbone,
        runtime.model,
        runtime.config.image,
        runtime.backbone_params,
        runtime.params,
        runtime.joint_tokenizer([caption]),
        pixels[None],
    )[0]
    config = runtime.config
    places_of_grid = config.backbone.vision.num_patches * config.adapter.upsampling**2
    patches = np.asarray(rows, np.float32)[:, -places_of_grid:]
    side = round(places_of_grid**0.5)
    words = np.array([patches[pieces].mean(axis=0) for _, pieces in places])
    words = words.reshape(len(places), side, side)
    shares = words.sum(axis=(1, 2), keepdims=True)
    return WordMaps(pixels, [word for word, _ in places], words / shares)


def caption_word_maps(
    runtime: Runtime, encoded: EncodedGallery, source: Source, q: int
) -> WordMaps:
    """Attention maps of the words of a gallery's caption q over the image it describes; only the
    runtime of JAX tells attention.

    Raises:
        BadImage: the image can no longer be read.
    """
    assert isinstance(runtime, JaxRuntime)
    gallery = encoded.gallery
    record = int(encoded.record[int(gallery.caption_image[q])])
    return word_maps(
        runtime, decode_record(source, record, runtime.config.image), gallery.captions[q]
    )


@partial(jax.jit, static_argnums=(0, 1, 2))
def _patch_attention(backbone, model, recipe, backbone_params, params, ids, images):
    pixels = normalise(images, recipe)
    vision_tokens = backbone.bind({"params": backbone_params}).encode_image(pixels).tokens
    return patch_attention(model, params, ids, vision_tokens)
