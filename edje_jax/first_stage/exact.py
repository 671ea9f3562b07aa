"""Exact search on the device: every embedding is compared with every query."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.first_stage.base import Allowed, Nearest, Reads, Vectors, no_neighbours
from edje_jax.first_stage.blockwise import Blocks


class Exact:
    """Comparison with every row: products block by block on the device, top k of each kept.

    Embeddings that do not fit into memory are read from where they lie, block by block, at every
    search. On TPU the blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
    """

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = False
    reads: ClassVar[Reads] = "embeddings"

    def __init__(self, vectors: Vectors, held_bytes: int | None = None):
        """Make embeddings searchable.

        Args:
            held_bytes: most bytes that are kept in memory (default: as `blockwise.Blocks` has it).
        """
        self._table = Blocks(vectors, partial(np.asarray, dtype=np.float32), held_bytes)

    @classmethod
    def build(cls, vectors: Vectors) -> "Exact":
        """Copy embeddings to the device, if they fit."""
        return cls(vectors)

    def __len__(self) -> int:
        return self._table.size

    def nearest(
        self, queries: Float32[np.ndarray, "q e"], k: int, allowed: Allowed = None
    ) -> Nearest:
        k = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        approximate = jax.default_backend() == "tpu"
        return self._table.nearest(_products, queries, k, allowed, approximate)


def _products(queries: Float[Array, "q e"], rows: Float[Array, "b e"]) -> Float[Array, "q b"]:
    return jnp.matmul(queries, rows.T, precision="highest")
