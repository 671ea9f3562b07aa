"""Recalls of a first stage whose similarities tie, as Hamming distances of short codes do.

Equal similarities stand in no order, so a recall is an expectation over all orders of them, each as
likely. Let a query's best right answers be in a group of t equal items, p of them right, with s
nearer items above it. Of the first K items, n = K - s (at least 0, at most t) are then drawn from
the group without replacement:

    P(a right answer among the first K) = 1 - C(t - p, n) / C(t, n)
                                        = 1 - product of (t - n - i) / (t - i) over i = 0 .. p - 1

Without ties (t = p = 1) the chance is 0 or 1, and the mean is the R@K of `measures.recall_at`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from edje_jax.evaluation.intervals import mean_intervals
from edje_jax.evaluation.similarities import Similarity, inner_products, similarity_blocks

DEPTHS = (1, 10, 50, 100, 200)
"""Depths at which a first stage is judged: those that a reranker may be given."""


@dataclass(frozen=True, eq=False)
class ExpectedRecalls:
    """Chances of Q queries to find a right answer among the first K items, for some depths K."""

    depths: tuple[int, ...]
    hits: Float64[np.ndarray, "q k"]
    """Chance of each query at each depth, from 0 to 1; 0 for a query without a right answer."""
    answered: Bool[np.ndarray, " q"]
    """Queries that have a right answer: those that count."""

    @property
    def recalls(self) -> dict[str, float]:
        """{"R@1": expected recall in percent, ...}, over the queries that count.

        Raises:
            ValueError: no query counts.
        """
        return dict(zip(self._names, self._counted.mean(axis=0).tolist(), strict=True))

    def intervals(
        self, image: Int[np.ndarray, " q"], seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """95% interval of every recall: {"R@1": (low, high), ...}.

        `image` numbers the image of each query.

        Raises:
            ValueError: no query counts.
        """
        found = mean_intervals(self._counted, image[self.answered], seed)
        return dict(zip(self._names, found, strict=True))

    def gain_intervals(
        self, before: "ExpectedRecalls", image: Int[np.ndarray, " q"], seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """95% interval of every recall less that of another first stage on the same queries.

        Raises:
            ValueError: no query counts, or the two differ in depths or in the queries that count.
        """
        if self.depths != before.depths:
            raise ValueError(f"recalls at {self.depths} and at {before.depths}; use one list")
        if not np.array_equal(self.answered, before.answered):
            raise ValueError("a query counts in one of the two first stages only; ask both alike")
        found = mean_intervals(self._counted - before._counted, image[self.answered], seed)
        return dict(zip(self._names, found, strict=True))

    @property
    def _names(self) -> list[str]:
        return [f"R@{k}" for k in self.depths]

    @property
    def _counted(self) -> Float64[np.ndarray, "c k"]:
        """Chances of the queries that count, in percent."""
        if not self.answered.any():
            raise ValueError(
                f"none of {len(self.answered)} queries has a right answer to count; "
                "evaluate on a set with captions"
            )
        return 100 * self.hits[self.answered]


def first_stage_recalls(
    queries: Shaped[np.ndarray, "q _"],
    items: Shaped[np.ndarray, "g _"],
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    depths: Sequence[int] = DEPTHS,
    similarity: Similarity = inner_products,
) -> ExpectedRecalls:
    """Expected recalls of an exact search; an item is right if it has the query's image.

    Works through the queries in blocks, so memory does not grow with q * g.

    Raises:
        ValueError: a depth is below 1.
    """
    if min(depths) < 1:
        raise ValueError(f"R@{min(depths)} does not exist; depths start at 1")
    hits, answered = np.empty((len(queries), len(depths))), np.empty(len(queries), bool)
    for rows, near in similarity_blocks(queries, items, similarity):
        positive = query_image[rows, None] == item_image[None]
        answered[rows] = positive.any(axis=1)
        hits[rows] = chance_of_hit(*best_ties(near, positive), depths)
    return ExpectedRecalls(tuple(depths), hits, answered)


def best_ties(
    similarities: Shaped[np.ndarray, "q g"], positive: Bool[np.ndarray, "q g"]
) -> tuple[Int[np.ndarray, " q"], Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
    """Numbers of items above each query's best right answer, level with it, and level and right.

    A right answer is level with itself. The last number is 0 for a query without one.
    """
    best = similarities.max(axis=1, where=positive, initial=-np.inf)[:, None]
    above, level = similarities > best, similarities == best
    return above.sum(axis=1), level.sum(axis=1), (level & positive).sum(axis=1)


def chance_of_hit(
    above: Int[np.ndarray, " q"],
    level: Int[np.ndarray, " q"],
    right: Int[np.ndarray, " q"],
    depths: Sequence[int],
) -> Float64[np.ndarray, "q k"]:
    """Chance that a right answer is among the first K items, for each of `depths`.

    The three numbers of a query are s, t and p, as `best_ties` gives them. Without p it is 0.
    """
    drawn = np.clip(np.asarray(depths) - above[:, None], 0, level[:, None])
    missed = np.ones(drawn.shape)
    for i in range(right.max(initial=0)):
        more = right > i
        rest = level[more, None] - i
        missed[more] *= np.maximum(rest - drawn[more], 0) / rest
    return 1 - missed
