"""Cascade of a search: candidates of the first stage, reranked, with the time of each part."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.scores import add_cosines, probability
from edje_jax.first_stage.base import Nearest
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.selection import Selection
from edje_jax.runtimes.base import Embedded, Runtime
from edje_jax.search.results import RankedCandidates, Timings


class TimedTokens:
    """Token table that measures its read time."""

    def __init__(self, tokens: Any):
        self._tokens, self.seconds, self.shape = tokens, 0.0, tokens.shape

    def __getitem__(self, rows: np.ndarray) -> Any:
        began = time.perf_counter()
        tokens = self._tokens[rows]
        self.seconds += time.perf_counter() - began
        return tokens


def search_images(
    runtime: Runtime,
    index: ImageIndex,
    queries: Sequence[str],
    k: int,
    calibration: Calibration = UNTUNED,
    chosen: Selection | None = None,
) -> tuple[list[RankedCandidates], Timings]:
    """Search images by texts.

    The k best candidates of each text are reranked; `chosen` restricts the search to some images.
    The times are those of all queries together.
    """
    began = time.perf_counter()
    embedded = runtime.encode_texts(queries)
    seconds = {"embed": time.perf_counter() - began}
    near, found = index.searched_images.candidates(
        embedded.embeddings, embedded.projections, k, chosen
    )
    owner, rows = _candidate_pairs(near)
    tokens = TimedTokens(index.tokens)
    began = time.perf_counter()
    ids, known = runtime.joint_tokenizer(list(queries)), near.similarities[near.rows >= 0]
    logits = runtime.score_pairs(ids, tokens, owner, rows, known)
    seconds |= {"gather": tokens.seconds, "rerank": time.perf_counter() - began}
    timings = Timings.of(seconds, found)
    return _rank_candidates(near, owner, logits, calibration), timings


def search_captions(
    runtime: Runtime,
    index: ImageIndex,
    tokens: Float32[np.ndarray, "q m d"],
    queries: Embedded,
    k: int,
    calibration: Calibration = UNTUNED,
    chosen: Selection | None = None,
) -> tuple[list[RankedCandidates], Timings]:
    """Search captions by images, of which tokens and embeddings are given.

    The k best captions of each image are reranked; `chosen` restricts the search to the captions of
    some images. The times are those of all queries together.
    """
    captions = None if chosen is None else chosen.captions
    near, found = index.searched_captions.candidates(
        queries.embeddings, queries.projections, k, captions
    )
    owner, rows = _candidate_pairs(near)
    began = time.perf_counter()
    # Only those captions that are candidates are tokenised.
    wanted, place = np.unique(rows, return_inverse=True)
    texts = [index.store.captions[int(row)][1] for row in wanted]
    ids, known = runtime.joint_tokenizer(texts), near.similarities[near.rows >= 0]
    logits = runtime.score_pairs(ids, tokens, place, owner, known)
    seconds = {"embed": 0.0, "gather": 0.0, "rerank": time.perf_counter() - began}
    timings = Timings.of(seconds, found)
    return _rank_candidates(near, owner, logits, calibration), timings


def _candidate_pairs(near: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every candidate; an approximate first stage may have found fewer than k."""
    owner, column = np.nonzero(near.rows >= 0)
    return owner, near.rows[owner, column]


def _rank_candidates(
    near: Nearest, owner: np.ndarray, logits: np.ndarray, calibration: Calibration
) -> list[RankedCandidates]:
    """Sort each query's candidates by falling score; equal ones keep the first stage's order."""
    out = []
    for query in range(len(near.rows)):
        own, here = logits[owner == query], near.rows[query] >= 0
        rows, similarities = near.rows[query][here], near.similarities[query][here]
        combined = add_cosines(own, similarities, calibration.similarity_weight)
        order = np.argsort(-combined, kind="stable")
        scores = probability(combined[order], calibration)
        out.append(
            RankedCandidates(rows[order], own[order], scores, similarities[order], order + 1)
        )
    return out
