"""Search and scores of queries of several parts."""

import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.combination import Background, pooled, without
from edje_jax.evaluation.scores import calibrated_logits, cosines, mixed, sigmoid
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.selection import Selection
from edje_jax.runtimes.base import Embedded, Encoded, Runtime
from edje_jax.search.cascade import TimedTokens, search_images
from edje_jax.search.query import Query, ReadQuery, read_query
from edje_jax.search.results import RankedCandidates, Timings


class Gallery(NamedTuple):
    """Images that are scored, and the cosines of images that have nothing to do with each other."""

    tokens: Any
    """Compressed tokens: `tokens[rows]` reads those of some images."""
    embeddings: Any
    """First-stage embeddings, in the same rows."""
    background: Background


class Scored(NamedTuple):
    """Images of a gallery as a query scores them."""

    logits: Float[np.ndarray, " n"]
    """Combined logits; their sigmoids are the scores."""
    similarities: Float32[np.ndarray, " n"]
    """Cosines with the text, or with the image where there is no text."""


def search_queries(
    runtime: Runtime,
    index: ImageIndex,
    queries: Sequence[str | Query],
    k: int,
    calibration: Calibration = UNTUNED,
    chosen: Selection | None = None,
) -> tuple[list[RankedCandidates], Timings]:
    """Rerank the k best candidates of each query: texts together, as `search_images` has it, and
    queries of several parts one by one."""
    texts = [query for query in queries if isinstance(query, str)]
    found, seconds = search_images(runtime, index, texts, k, calibration, chosen)
    if len(texts) == len(queries):
        return found, seconds
    of_texts, out, times = iter(found), [], [seconds]
    for query in queries:
        if isinstance(query, str):
            out.append(next(of_texts))
            continue
        read = read_query(query, runtime, index)
        ranked, own = search_composed(runtime, index, read, k, calibration, chosen)
        out.append(ranked)
        times.append(own)
    return out, Timings(*map(sum, zip(*map(astuple, times), strict=True)))


def rank_composed(
    runtime: Runtime, query: Query, images: Encoded, calibration: Calibration
) -> Float[np.ndarray, " n"]:
    """Combined logits of a query and of images that are in no index.

    Raises:
        BadImage: the image of the query cannot be read.
        ValueError: the query names an image of an index.
    """
    read = read_query(query, runtime)
    texts = runtime.embed_texts(read.texts)
    gallery = Gallery(images.tokens, images.embeddings, Background.of(images.embeddings))
    rows = np.arange(len(images.tokens))
    return score_composed(runtime, read, texts, gallery, rows, calibration).logits


def search_composed(
    runtime: Runtime,
    index: ImageIndex,
    query: ReadQuery,
    k: int,
    calibration: Calibration = UNTUNED,
    chosen: Selection | None = None,
) -> tuple[RankedCandidates, Timings]:
    """Rerank the k best candidates of a query, among the chosen images if some are."""
    began = time.perf_counter()
    texts = runtime.encode_texts(query.texts)
    seconds = {"embed": time.perf_counter() - began}
    rows, found = _candidates(index, query, texts, k, chosen)
    began = time.perf_counter()
    tokens = TimedTokens(index.tokens)
    gallery = Gallery(tokens, index.store.embeddings, index.background)
    logits, similarities = score_composed(
        runtime, query, texts.embeddings, gallery, rows, calibration
    )
    seconds |= {"gather": tokens.seconds, "rerank": time.perf_counter() - began}
    order = np.argsort(-logits, kind="stable")
    scores = sigmoid(logits[order].astype(np.float32))
    ranked = RankedCandidates(
        rows[order], logits[order].astype(np.float32), scores, similarities[order], order + 1
    )
    return ranked, Timings.of(seconds, found)


def score_composed(
    runtime: Runtime,
    query: ReadQuery,
    texts: Float32[np.ndarray, "t e"],
    gallery: Gallery,
    rows: Int[np.ndarray, " n"],
    calibration: Calibration = UNTUNED,
) -> Scored:
    """Combined logits of a query and some rows of a gallery; `texts` are the embeddings of the
    query's texts."""
    embeddings = gallery.embeddings[rows]
    # Image by image, so that the tokens of one are read once for a batch.
    image_index, text_index = np.indices((len(rows), len(texts))).reshape(2, -1)
    known = cosines(texts, embeddings, text_index, image_index)
    ids = runtime.joint_tokenizer(query.texts) if query.texts else np.zeros((0, 1), np.int32)
    logits = runtime.score_pairs(ids, gallery.tokens, text_index, rows[image_index], known)
    combined = mixed(logits, known, calibration.similarity_weight).astype(np.float64)
    of_texts = calibrated_logits(combined, calibration).reshape(len(rows), len(texts)).T
    similarities = known.reshape(len(rows), len(texts)).T[:1]
    alike = None
    if query.image is not None:
        alike = embeddings @ query.image.embeddings[0]
    if not query.query.text:
        similarities = [alike]
    of_image = None if alike is None else gallery.background.logits(alike)
    return Scored(_combined(query, of_texts, of_image), similarities[0])


def _combined(
    query: ReadQuery,
    of_texts: Float[np.ndarray, "t n"],
    of_image: Float[np.ndarray, " n"] | None,
) -> Float[np.ndarray, " n"]:
    """Combined logits, from those of the query's texts and of its image's cosines."""
    asked, first = query.query, 1 if query.query.text else 0
    negatives, captions = np.split(of_texts[first:], [len(asked.negatives)])
    if of_image is not None and len(captions):
        of_image = pooled(of_image, captions.mean(axis=0), 0.5)
    if of_image is None:
        logits = of_texts[0]
    elif asked.text:
        logits = pooled(of_texts[0], of_image, asked.image_weight)
    else:
        logits = of_image
    for negative in negatives:
        logits = without(logits, negative)
    return logits


def _candidates(
    index: ImageIndex, query: ReadQuery, texts: Embedded, k: int, chosen: Selection | None
) -> tuple[Int[np.ndarray, " n"], dict[str, float]]:
    """At most k candidates of a query, the nearest to its text, to its image, or to both in turn,
    and the seconds of each step; see `Searched.candidates`."""
    parts = [Embedded(texts.embeddings[:1], texts.projections[:1])] if query.query.text else []
    parts += [] if query.image is None else [query.image]
    bits = index.bits or 0
    near, seconds = index.searched_images.candidates(
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.projections[:, :bits] for part in parts]),
        k + (query.number is not None),
        chosen,
    )
    rows = dict.fromkeys(near.rows.T.ravel().tolist())
    kept = [row for row in rows if row >= 0 and row != query.number][:k]
    return np.array(kept, np.int64), seconds
