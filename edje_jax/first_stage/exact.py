"""Exact search on the device: every embedding is compared with every query."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.data.buckets import batches
from edje_jax.first_stage.base import Nearest, nothing

QUERY_BATCHES = (1, 8, 64)


BLOCK = 1 << 16
"""Embeddings compared with a batch of queries at once: bounds what a search keeps in memory."""


class Exact:
    """Every row is compared: products block by block on the device, top k of each kept.

    On TPU the blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
    """

    def __init__(self, embeddings: Float32[np.ndarray, "n e"]):
        self._size = len(embeddings)
        self._block = min(BLOCK, max(self._size, 1))
        padded = -(-self._size // self._block) * self._block
        table = np.zeros((padded, embeddings.shape[1]), np.float32)
        table[: self._size] = embeddings
        self._table = jnp.asarray(table.reshape(-1, self._block, embeddings.shape[1]))

    def __len__(self) -> int:
        return self._size

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        k = min(k, self._size)
        if not k or not len(queries):
            return nothing(len(queries), k)
        # Computed for a few k, as each is a program of its own.
        asked = min(max(16, 1 << (k - 1).bit_length()), self._size)
        similarities = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int32)
        approximate = jax.default_backend() == "tpu"
        # A batch's time is that of reading the table, however many ask.
        for chosen, real in batches(np.arange(len(queries)), QUERY_BATCHES, filled=0):
            found = _nearest(asked, approximate, self._table, self._size, queries[chosen])
            similarities[chosen[:real]], rows[chosen[:real]] = (
                np.asarray(x)[:real, :k] for x in found
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
