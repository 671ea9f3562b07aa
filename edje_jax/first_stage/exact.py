"""Exact search on the device: every embedding is compared with every query."""

from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.data.buckets import batches
from edje_jax.first_stage.base import Nearest, Vectors, no_neighbours

QUERY_BATCHES = (1, 8, 64)

BLOCK = 1 << 16
"""Embeddings compared with a batch of queries at once: bounds what a search keeps in memory."""


class Exact:
    """Comparison with every row: products block by block on the device, top k of each kept.

    On TPU the blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
    """

    is_stored: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def __init__(self, vectors: Vectors):
        self._size, width = vectors.shape
        self._block = min(BLOCK, max(self._size, 1))
        blocks = -(-self._size // self._block)
        table = np.zeros((blocks * self._block, width), np.float32)
        for start in range(0, self._size, self._block):
            stop = min(start + self._block, self._size)
            table[start:stop] = vectors[start:stop]
        self._table = jnp.asarray(table.reshape(blocks, self._block, width))

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None = None) -> "Exact":
        """Copy embeddings to the device; nothing is written."""
        return cls(vectors)

    @classmethod
    def open(cls, folder: Path) -> "Exact":
        """Raise an error: nothing is stored."""
        raise FileNotFoundError(f"{folder}: an exact first stage is built, not opened")

    def __len__(self) -> int:
        return self._size

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        k = min(k, self._size)
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        # Computed for a few k, as each is a program of its own.
        asked = min(max(16, 1 << (k - 1).bit_length()), self._size)
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int32)
        approximate = jax.default_backend() == "tpu"
        # A batch's time is that of reading the table, however many ask.
        for chosen, count in batches(np.arange(len(queries)), QUERY_BATCHES, filled=0):
            found = _nearest(asked, approximate, self._table, self._size, queries[chosen])
            similarities[chosen[:count]], rows[chosen[:count]] = (
                np.asarray(x)[:count, :k] for x in found
            )
        return Nearest(similarities, rows)


@partial(jax.jit, static_argnums=(0, 1))
def _nearest(
    k: int,
    approximate: bool,
    table: Float[Array, "c b e"],
    size: Array,
    queries: Float[Array, "q e"],
) -> tuple[Array, Array]:
    """The best k so far go through the blocks; they stand first, so that ties keep lower rows."""
    block = table.shape[1]
    inside = min(k, block)

    def step(best: tuple[Array, Array], numbered: tuple[Array, Array]):
        number, rows = numbered
        close = jnp.matmul(queries, rows.T, precision="highest")
        place = number * block + jnp.arange(block, dtype=jnp.int32)
        close = jnp.where((place < size)[None, :], close, -jnp.inf)
        top = partial(jax.lax.approx_max_k, recall_target=0.99) if approximate else jax.lax.top_k
        values, columns = top(close, inside)
        values = jnp.concatenate([best[0], values], axis=1)
        columns = jnp.concatenate([best[1], place[columns]], axis=1)
        values, kept = jax.lax.top_k(values, k)
        return (values, jnp.take_along_axis(columns, kept, axis=1)), None

    nothing = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    numbers = jnp.arange(len(table), dtype=jnp.int32)
    return jax.lax.scan(step, nothing, (numbers, table))[0]
