"""Search and scores of queries of several parts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.combination import Background, match_and_not, pool_logits
from edje_jax.evaluation.scores import add_cosines, calibrated_logits, cosines, sigmoid
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.selection import Selection
from edje_jax.runtimes.base import Embedded, Encoded, Runtime, TokenTable
from edje_jax.search.cascade import TimedTokens, search_images
from edje_jax.search.query import Query, ReadQuery, read_query
from edje_jax.search.results import RankedCandidates, Timings


class PartScores(NamedTuple):
    """Scores of n images by each of the t texts of a query, and by its image."""

    logits: Float[np.ndarray, "t n"]
    """Calibrated logits of the texts."""
    cosines: Float32[np.ndarray, "t n"]
    """First-stage cosines of the texts."""
    image_cosines: Float32[np.ndarray, " n"] | None
    """First-stage cosines of the query's image; None if it has none."""


def search_queries(
    runtime: Runtime,
    index: ImageIndex,
    queries: Sequence[str | Query],
    k: int,
    calibration: Calibration = UNTUNED,
    chosen: Selection | None = None,
) -> tuple[list[RankedCandidates], Timings]:
    """Search images by queries: texts together (`search_images`), queries of several parts one by
    one.

    The k best candidates of each query are reranked; `chosen` restricts the search to some images.
    The times are those of all queries together.
    """
    texts = [query for query in queries if isinstance(query, str)]
    found, times = [], []
    if texts or not queries:
        found, seconds = search_images(runtime, index, texts, k, calibration, chosen)
        times.append(seconds)
    of_texts, out = iter(found), []
    for query in queries:
        if isinstance(query, str):
            out.append(next(of_texts))
            continue
        ranked, seconds = _search_composed(runtime, index, query, k, calibration, chosen)
        out.append(ranked)
        times.append(seconds)
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
    texts, rows = runtime.embed_texts(read.texts), np.arange(len(images.tokens))
    parts = score_parts(runtime, read, texts, images.tokens, rows, images.embeddings, calibration)
    return combine(read, parts, lambda: Background.of(images.embeddings))


def _search_composed(
    runtime: Runtime,
    index: ImageIndex,
    asked: Query,
    k: int,
    calibration: Calibration,
    chosen: Selection | None,
) -> tuple[RankedCandidates, Timings]:
    """Rerank the k best candidates of a query; `chosen` restricts the search to some images."""
    began = time.perf_counter()
    query = read_query(asked, runtime, index)
    texts = runtime.encode_texts(query.texts)
    seconds = {"embed": time.perf_counter() - began}
    rows, found = _candidates(index, query, texts, k, chosen)
    began = time.perf_counter()
    tokens = TimedTokens(index.tokens)
    embeddings = index.store.embeddings[rows]
    parts = score_parts(runtime, query, texts.embeddings, tokens, rows, embeddings, calibration)
    logits = combine(query, parts, lambda: index.background).astype(np.float32)
    seconds |= {"gather": tokens.seconds, "rerank": time.perf_counter() - began}
    order = np.argsort(-logits, kind="stable")
    similarities = (
        parts.cosines[0] if parts.image_cosines is None or asked.text else parts.image_cosines
    )
    ranked = RankedCandidates(
        rows[order], logits[order], sigmoid(logits[order]), similarities[order], order + 1
    )
    return ranked, Timings.of(seconds, found)


def score_parts(
    runtime: Runtime,
    query: ReadQuery,
    texts: Float32[np.ndarray, "t e"],
    tokens: TokenTable,
    rows: Int[np.ndarray, " n"],
    embeddings: Float32[np.ndarray, "n e"],
    calibration: Calibration,
) -> PartScores:
    """Scores of images by the parts of a query; `texts` are the embeddings of its texts, `tokens`
    are read at `rows`, and `embeddings` are those of these rows."""
    # Image by image, so that the tokens of one are read once for a batch.
    image_index, text_index = np.indices((len(rows), len(texts))).reshape(2, -1)
    known = cosines(texts, embeddings, text_index, image_index)
    # A tokenizer need not know how wide the ids of no text are.
    ids = runtime.joint_tokenizer(query.texts) if query.texts else np.zeros((0, 1), np.int32)
    logits = runtime.score_pairs(ids, tokens, text_index, rows[image_index], known)
    combined = add_cosines(logits, known, calibration.similarity_weight).astype(np.float64)
    shape = (len(rows), len(texts))
    return PartScores(
        calibrated_logits(combined, calibration).reshape(shape).T,
        known.reshape(shape).T,
        None if query.image is None else embeddings @ query.image.embeddings[0],
    )


def concatenate_scores(parts: Sequence[PartScores]) -> PartScores:
    """Scores of all images of several groups."""
    logits, known, image_cosines = zip(*parts, strict=True)
    return PartScores(
        np.concatenate(logits, axis=1),
        np.concatenate(known, axis=1),
        None if image_cosines[0] is None else np.concatenate(image_cosines),
    )


def combine(
    query: ReadQuery, parts: PartScores, background: Callable[[], Background]
) -> Float[np.ndarray, " n"]:
    """Combined logits of a query, whose sigmoids are the scores; `background`, which a query with
    an image asks, tells how alike images are that have nothing to do with each other."""
    of_texts, image_cosines = parts.logits, parts.image_cosines
    asked, first = query.query, 1 if query.query.text else 0
    negatives, captions = np.split(of_texts[first:], [len(asked.negatives)])
    if image_cosines is None:
        logits = of_texts[0]
    else:
        logits = background().logits(image_cosines)
        if len(captions):
            logits = pool_logits(logits, captions.mean(axis=0), 0.5)
        if asked.text:
            logits = pool_logits(of_texts[0], logits, asked.image_weight)
    for negative in negatives:
        logits = match_and_not(logits, negative)
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
