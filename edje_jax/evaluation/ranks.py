"""Ranks of the right answers in a first stage, and the ceiling that its candidates set."""

import numpy as np
from jaxtyping import Bool, Float, Int


def best_positive(
    similarities: Float[np.ndarray, "q g"], positive: Bool[np.ndarray, "q g"]
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
    """Column of each query's best right answer and its exact rank among all g, both int32.

    Equal similarities rank by column, lower first. A query without a right answer gets (-1, 0).
    """
    # argmax takes the first of equals, which is the one that ranks first.
    column = np.where(positive, similarities, -np.inf).argmax(axis=1)
    best = np.take_along_axis(similarities, column[:, None], axis=1)
    above = np.count_nonzero(similarities > best, axis=1)
    earlier = np.arange(similarities.shape[1]) < column[:, None]
    level = np.count_nonzero((similarities == best) & earlier, axis=1)
    answered = positive.any(axis=1)
    rank = np.where(answered, 1 + above + level, 0)
    return np.where(answered, column, -1).astype(np.int32), rank.astype(np.int32)


def candidate_ceiling(hits: Bool[np.ndarray, "q k"]) -> float:
    """Hit@k of a first stage in percent: the best R@1 that any reranking of it can reach.

    `hits` tells which candidates are right answers, of the queries that count.
    """
    return float(np.mean(100.0 * hits.any(axis=1)))
