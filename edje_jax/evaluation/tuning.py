"""Results of `edje tune`: ways to rerank, with what they find and cost, and the best of them.

An image costs the bytes of its tokens and of what the first stage compares: a packed code, or a
float32 embedding. An index keeps the embedding beside a code too, to rescore what codes have found;
it is read for a few candidates only, and is not counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from edje_jax.config.model import OnlineVision, TokenDtype

TIE = 0.05
"""Step of times on the Pareto front, as a share: another run may swap nearer ones."""


@dataclass(frozen=True)
class TuneResult:
    """A model, a token dtype, a first stage and a depth, with what they find and cost."""

    model: str
    deferred_layers: int
    online_vision: OnlineVision
    token_dtype: TokenDtype
    first_stage: str
    """Name, with the length of codes where it compares these: "exact", "codes-64"."""
    k: int
    t2i: float
    """Text-to-image R@1 in percent."""
    i2t: float
    """Image-to-text R@1 in percent."""
    bytes_per_picture: int
    """Bytes of one image's tokens."""
    first_stage_bytes: int
    """Bytes that the first stage compares of one image."""
    pairs_per_second: float
    """Median of several timings of queries with k candidates each, on this machine."""
    slowest_pairs_per_second: float
    fastest_pairs_per_second: float

    @property
    def recall(self) -> float:
        """Mean of both directions' R@1."""
        return (self.t2i + self.i2t) / 2

    @property
    def queries_per_second(self) -> float:
        """Queries of k candidates per second, reranking alone."""
        return self.pairs_per_second / self.k

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's tokens, and of its code or embedding."""
        return self.bytes_per_picture + self.first_stage_bytes


def on_front(results: Sequence[TuneResult]) -> list[bool]:
    """Whether each result is on the Pareto front of recall, queries per second and bytes."""
    values = [
        (r.recall, round(math.log(r.queries_per_second) / TIE), -r.bytes_per_image) for r in results
    ]
    return pareto_front(values).tolist()


def pareto_front(values: Sequence[Sequence[float]]) -> Bool[np.ndarray, " n"]:
    """Whether each of n points [n, d] is not dominated; larger is better in each of the d.

    A point is dominated by one that is at least as good in all and better in one; of equal points
    none dominates the other.
    """
    points: Float[np.ndarray, "n d"] = np.asarray(values, float)
    no_worse = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    return np.logical_not(np.any(no_worse & better, axis=0))
