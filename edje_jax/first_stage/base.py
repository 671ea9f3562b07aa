"""The protocol of a first stage: the k nearest embeddings of each query.

Embeddings have unit length, so that a product is a cosine. Equal similarities rank by lower row.
"""

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int


class Nearest(NamedTuple):
    """The k nearest rows of each query, nearest first."""

    similarities: Float32[np.ndarray, "q k"]
    rows: Int[np.ndarray, "q k"]


def nothing(queries: int, k: int) -> Nearest:
    """Neighbours in an empty table, or for no query: arrays of [queries, k], one of them 0."""
    return Nearest(np.empty((queries, k), np.float32), np.empty((queries, k), np.int32))


class FirstStage(Protocol):
    """Embeddings that can be searched."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        """The min(k, len(self)) nearest rows of each query; an approximate engine may find fewer
        and says so with row -1 at the end."""
        ...
