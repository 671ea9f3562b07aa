"""Costs of a model at the sizes of FiCo-ITR: bytes that it stores, and what it does in a second."""

import time
from typing import Any

import numpy as np

from edje_jax.config.model import EdjeConfig
from edje_jax.data.bad_records import BadRecords
from edje_jax.data.image_reader import read_gallery
from edje_jax.data.sources.registry import open_captioned
from edje_jax.first_stage.untrained import bytes_per_image
from edje_jax.models.token_formats import FORMATS
from edje_jax.search.reranker import Reranker

IMAGES, CAPTIONS = 1_000_000, 5_000_000
RERANKED = 128
"""Candidates of a query in FiCo-ITR's times on Flickr30k."""


def storage(config: EdjeConfig) -> dict[str, Any]:
    """Bytes of 1M images and 5M captions by the shapes of a model: computed."""
    width, entries = config.backbone.text.projection_size, IMAGES + CAPTIONS
    size = config.num_tokens, config.joint_encoder.hidden_size
    return {
        "embedding_width": width, "tokens": size,
        "embeddings": {
            kind: entries * bytes_per_image(kind, width) for kind in ("float32", "float16", "int8")
        },
        "codes": {bits: entries * bits // 8 for bits in (64, 256, 2048)},
        "tokens_of_images": {
            kind: IMAGES * FORMATS[kind].bytes_per_image(*size)
            for kind in ("bfloat16", "int8", "int4")
        },
    }  # fmt: skip


def rates(reranker: Reranker, model: str, images: int = 1000, texts: int = 100) -> dict[str, Any]:
    """Images and captions encoded and pairs scored per second on scenes, reading not counted."""
    runtime, source = reranker.runtime, open_captioned("shapes:test")
    images = min(images, len(source))
    batches = list(
        read_gallery(source, runtime.config.image, BadRecords(images, 0.0), range(images))
    )
    captions = [caption for i in range(images) for caption in source.captions(i)]
    for batch in (batches[0], batches[-1]):  # Compiles, as the other first calls below
        runtime.encode_images(batch.images)
    began = time.perf_counter()
    encoded = [runtime.encode_images(batch.images) for batch in batches]
    encode_seconds = time.perf_counter() - began
    runtime.embed_texts(captions)
    began = time.perf_counter()
    embedded = runtime.embed_texts(captions)
    embed_seconds = time.perf_counter() - began
    tokens = np.concatenate([each.tokens for each in encoded])
    image = np.concatenate([each.embeddings for each in encoded])
    order = np.argsort(-embedded[:texts] @ image.T, axis=1)[:, :RERANKED].reshape(-1)
    text = np.repeat(np.arange(texts), len(order) // texts)
    cosines = np.einsum("pe,pe->p", embedded[text], image[order])
    ids = runtime.joint_tokenizer(captions[:texts])
    runtime.score_pairs(ids, tokens, text, order, cosines)
    began = time.perf_counter()
    runtime.score_pairs(ids, tokens, text, order, cosines)
    score_seconds = time.perf_counter() - began
    return {
        "model": model, "data": "shapes:test",
        "images": images, "captions": len(captions), "pairs": len(order),
        "reranked": RERANKED,
        "images_per_second": images / encode_seconds,
        "captions_per_second": len(captions) / embed_seconds,
        "pairs_per_second": len(order) / score_seconds,
    }  # fmt: skip
