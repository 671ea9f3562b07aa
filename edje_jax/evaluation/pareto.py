"""What is worth choosing: points that no other one beats in everything."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def pareto_front(values: Sequence[Sequence[float]]) -> Bool[np.ndarray, " n"]:
    """Which of n points [n, d], larger being better in each of the d, are not dominated.

    A point is dominated by one that is at least as good in all and better in one; of equal points
    none dominates the other.
    """
    points: Float[np.ndarray, "n d"] = np.asarray(values, float)
    no_worse = (points[:, None] >= points[None]).all(axis=2)
    better = (points[:, None] > points[None]).any(axis=2)
    return np.logical_not(np.any(no_worse & better, axis=0))
