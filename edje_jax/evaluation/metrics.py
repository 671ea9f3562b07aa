"""Recall at k from ranks, the rank of a query's best right answer, and the candidate ceiling.

Everything is in percent and counts queries, not right answers: a picture with five captions is hit
at k when *any* of them is among the first k (the usual any-hit reading of image-to-text R@k, e.g.
in ALBEF's and BLIP's evaluations). A rank is 1 for the top place and 0 for a query without one
(no right answer, or padding); such queries never count.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

RECALLS = (1, 5, 10)
"""The k of every R@k that is reported."""


def recall_at_k(
    ranks: Int[np.ndarray, " q"], k: int, valid: Bool[np.ndarray, " q"] | None = None
) -> float:
    """Percentage of the queries whose best right answer stands at rank k or above.

    Rows with rank 0 or with `valid` False are left out of both counts.

    Raises:
        ValueError: k is below 1, or no query is left to count.
    """
    if k < 1:
        raise ValueError(f"R@{k} does not exist; k starts at 1")
    ranks = np.asarray(ranks, np.int64)
    counted = ranks > 0
    if valid is not None:
        counted &= np.asarray(valid, bool)
    return _percentage(ranks <= k, counted)


def recalls(
    ranks: Int[np.ndarray, " q"], valid: Bool[np.ndarray, " q"] | None = None
) -> dict[str, float]:
    """{"R@1", "R@5", "R@10"} in percent; rows are left out as in `recall_at_k`."""
    return {f"R@{k}": recall_at_k(ranks, k, valid) for k in RECALLS}


def candidate_ceiling(
    hits: Bool[np.ndarray, "q k"], valid: Bool[np.ndarray, " q"] | None = None
) -> float:
    """Hit@k of a first stage in percent: the best R@1 that any reranking of it can reach.

    `hits` tells which candidates are right answers; rows with `valid` False are left out.

    Raises:
        ValueError: no query is left to count.
    """
    counted = np.ones(len(hits), bool) if valid is None else np.asarray(valid, bool)
    return _percentage(np.count_nonzero(hits, axis=1) > 0, counted)


def best_positive(
    similarities: Float[np.ndarray, "q g"],
    positive: Bool[np.ndarray, "q g"],
    valid: Bool[np.ndarray, " g"] | None = None,
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
    """Each query's best right answer: its column and its exact rank among all g, both int32.

    Equal similarities rank by column, lower first. Columns with `valid` False (padding) are no
    answer to anything and stand in nobody's way. A query without a right answer gets (-1, 0).
    """
    if valid is not None:
        positive = positive & valid
        similarities = np.where(valid, similarities, -np.inf)
    # argmax takes the first of equals, which is the one that ranks first.
    column = np.where(positive, similarities, -np.inf).argmax(axis=1)
    best = np.take_along_axis(similarities, column[:, None], axis=1)
    above = np.count_nonzero(similarities > best, axis=1)
    earlier = np.arange(similarities.shape[1]) < column[:, None]
    level = np.count_nonzero((similarities == best) & earlier, axis=1)
    answered = positive.any(axis=1)
    rank = np.where(answered, 1 + above + level, 0)
    return np.where(answered, column, -1).astype(np.int32), rank.astype(np.int32)


def _percentage(hit: Bool[np.ndarray, " q"], counted: Bool[np.ndarray, " q"]) -> float:
    total = np.count_nonzero(counted)
    if not total:
        raise ValueError(
            f"none of {len(counted)} queries has a right answer to count; "
            "evaluate on a set with captions"
        )
    return 100.0 * np.count_nonzero(hit & counted) / total


def pareto_front(values: Sequence[Sequence[float]]) -> Bool[np.ndarray, " n"]:
    """Which of n points [n, d], larger being better in each of the d, are not dominated.

    A point is dominated by one that is at least as good in all and better in one; of equal points
    none dominates the other.
    """
    points: Float[np.ndarray, "n d"] = np.asarray(values, float)
    no_worse = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    return np.logical_not(np.any(no_worse & better, axis=0))
