"""Search on the device, block by block: every row of a table is compared with every query."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped

from edje_jax.data.buckets import batches
from edje_jax.first_stage.base import Nearest, Vectors

QUERY_BATCHES = (1, 8, 64)

BLOCK = 1 << 16
"""Rows compared with a batch of queries at once: bounds what a search keeps in memory."""

Compare = Callable[[Array, Array], Float32[Array, "q b"]]
"""Closeness of queries [q, w] to rows [b, w]: larger is nearer. A function of a module, as each is
a program of its own."""


def device_blocks(
    vectors: Vectors, prepare: Callable[[np.ndarray], np.ndarray]
) -> Shaped[Array, "c b w"]:
    """Rows on the device in blocks of equal size, the last one filled up with zeros.

    `prepare` makes rows of the table from rows of the vectors.
    """
    size, width = len(vectors), prepare(vectors[:0])
    block = min(BLOCK, max(size, 1))
    table = np.zeros((-(-size // block), block, width.shape[1]), width.dtype)
    for number, rows in enumerate(table):
        part = prepare(vectors[number * block : (number + 1) * block])
        rows[: len(part)] = part
    return jnp.asarray(table)


def nearest_in_blocks(
    compare: Compare,
    table: Shaped[Array, "c b w"],
    size: int,
    queries: Shaped[np.ndarray, "q w"],
    k: int,
    approximate: bool = False,
) -> Nearest:
    """The k nearest of the first `size` rows to each query, k at most `size`, by their closeness.

    With `approximate`, blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
    """
    # Computed for a few k, as each is a program of its own.
    asked = min(max(16, 1 << (k - 1).bit_length()), size)
    closeness = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int32)
    # A batch's time is that of reading the table, however many ask.
    for chosen, count in batches(np.arange(len(queries)), QUERY_BATCHES, filled=0):
        found = _nearest(compare, asked, approximate, table, size, queries[chosen])
        closeness[chosen[:count]], rows[chosen[:count]] = (np.asarray(x)[:count, :k] for x in found)
    return Nearest(closeness, rows)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _nearest(
    compare: Compare,
    k: int,
    approximate: bool,
    table: Shaped[Array, "c b w"],
    size: Array,
    queries: Shaped[Array, "q w"],
) -> tuple[Array, Array]:
    """The best k so far go through the blocks; they stand first, so that ties keep lower rows."""
    block = table.shape[1]
    inside = min(k, block)

    def step(best: tuple[Array, Array], numbered: tuple[Array, Array]):
        number, rows = numbered
        close = compare(queries, rows)
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
