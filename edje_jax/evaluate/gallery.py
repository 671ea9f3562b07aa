"""Gallery of an evaluation: opened, encoded to tokens and embeddings, and scored pair by pair."""

import logging
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from edje_jax.data.bad_records import BadRecords, left_out
from edje_jax.data.image_reader import read_gallery
from edje_jax.data.images import has_videos
from edje_jax.data.sources.pooled import Pooled
from edje_jax.data.sources.registry import open_captioned, open_source
from edje_jax.data.sources.subset import merge_by_id
from edje_jax.evaluation.retrieval import Gallery, Retrieval, ScorePairs, rerank
from edje_jax.evaluation.scores import cosines
from edje_jax.models.token_formats import PackedTokens
from edje_jax.runtimes.base import Runtime
from edje_jax.types import Source

IN_MEMORY = 2 << 30
"""Bytes of compressed tokens to hold in memory; more lie in a temporary file (TMPDIR)."""

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Function that is called with (kind of work, done, total)."""


def open_gallery(data: str, pool: str | None = None, image_root: str | None = None) -> Source:
    """Open the set to ask with, among the images of the pool if there is one; both are SPECs.

    Raises:
        FileNotFoundError, ValueError: one of them cannot be opened.
    """
    source = merge_by_id(open_captioned(data, image_root))
    return Pooled(source, open_source(pool, image_root)) if pool else source


@dataclass(frozen=True)
class EncodedGallery:
    """Gallery after the offline part: row i of the arrays is image i of the gallery."""

    gallery: Gallery
    record: list[int]
    """Index of each image in the source."""
    tokens: Float[np.ndarray, "n m d"] | PackedTokens
    embeddings: Float32[np.ndarray, "n e"]
    projections: Float32[np.ndarray, "n bits"]
    """Numbers whose signs are the images' codes; [n, 0] of a model without codes."""


def encode_gallery(
    runtime: Runtime, source: Source, max_bad: float, progress: Progress | None = None
) -> EncodedGallery:
    """Read and encode every image or video of a source once; of a video, a model of images reads
    the frame in the middle.

    Raises:
        ValueError: the source has no captions to ask with (`open_captioned` finds that sooner).
        TooManyBadRecords: more than `max_bad` of the records are bad, of the set or,
            where there is one, of the pool: a large pool hides no damage to the set.
        OSError: the tokens need a temporary file, and there is no room for it.
    """
    config = runtime.config
    if not config.video and has_videos(source):
        log.info("this model reads images: of each video it takes the frame in the middle")
    record: list[int] = []
    size = (config.num_tokens, config.joint_encoder.hidden_size)
    tokens = _allocate_tokens((len(source), *size))
    embeddings = np.empty((len(source), config.backbone.text.projection_size), np.float32)
    bits = config.first_stage.bits if config.first_stage else 0
    projections = np.empty((len(source), bits), np.float32)
    sets = (source.source, source.pool) if isinstance(source, Pooled) else (source,)
    own = len(sets[0])
    batches = (
        batch
        for part, of in zip((range(own), range(own, len(source))), sets, strict=False)
        for batch in read_gallery(
            source,
            config.image,
            BadRecords.after(left_out(of), len(part), max_bad),
            part,
            config.video.sampling if config.video else None,
        )
    )
    for batch in batches:
        encoded = runtime.encode_images(batch.images)
        rows = slice(len(record), len(record) + len(batch.records))
        tokens[rows], embeddings[rows] = encoded.tokens, encoded.embeddings
        projections[rows] = encoded.projections
        record += batch.records
        if progress:
            progress("images", len(record), len(source))
    captions = [list(source.captions(i)) for i in record]
    gallery = Gallery.of([source.image_id(i) for i in record], captions)
    count = len(record)
    return EncodedGallery(gallery, record, tokens[:count], embeddings[:count], projections[:count])


def _allocate_tokens(shape: tuple[int, ...]) -> np.ndarray:
    """Allocate float32 in memory, or in a file without a name if it is more than `IN_MEMORY`."""
    size = 4 * math.prod(shape)
    if size <= IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile() as file:
        # A mapped file that finds the disk full ends the process without a word.
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                tokens = f"{size / 1e9:,.1f} GB of tokens; TMPDIR names the folder"
                message = f"{error.strerror} ({tokens})"
                raise OSError(error.errno, message, tempfile.gettempdir()) from error
        return np.memmap(file, np.float32, "w+", shape=shape)


def pair_scorer(
    runtime: Runtime, encoded: EncodedGallery, progress: Progress | None = None
) -> ScorePairs:
    """Score as a function of (caption, image) numbers of the gallery."""
    captions = encoded.gallery.captions
    ids = runtime.joint_tokenizer(captions)
    embedded = runtime.embed_texts(captions) if runtime.config.similarity_prior else None
    # Tokens on disk stay there: a batch's rows are read while the one before is computed. On a CPU
    # a second copy would take the same memory.
    stays = isinstance(encoded.tokens, np.memmap) or jax.default_backend() == "cpu"
    tokens = encoded.tokens if stays else jax.tree.map(jnp.asarray, encoded.tokens)

    def score_pairs(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        out = np.empty(len(text_index), np.float32)
        order = np.arange(len(out))
        if runtime.config.encodes_captions:
            order = np.argsort(text_index, kind="stable")  # A caption's pairs together: read once
        step = 16_384
        for start in range(0, len(out), step):
            part = order[start : start + step]
            pairs = text_index[part], image_index[part]
            known = None
            if embedded is not None:
                known = cosines(embedded, encoded.embeddings, *pairs)
            out[part] = runtime.score_pairs(ids, tokens, *pairs, known)
            if progress:
                progress("pairs", min(start + step, len(out)), len(out))
        return out

    return score_pairs


def evaluate(
    runtime: Runtime,
    encoded: EncodedGallery,
    k: int,
    similarity_weight: float = 0.0,
    progress: Progress | None = None,
) -> Retrieval:
    """Retrieve by the first stage and rerank k candidates a query, in both directions."""
    return rerank(
        encoded.gallery,
        encoded.embeddings,
        runtime.embed_texts(encoded.gallery.captions),
        pair_scorer(runtime, encoded, progress),
        k,
        similarity_weight,
    )
