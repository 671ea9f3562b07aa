"""Search on the device, block by block: every row of a table is compared with every query."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Shaped

from edje_jax.data.buckets import batches
from edje_jax.first_stage.base import Allowed, Nearest, Vectors

QUERY_BATCHES = (1, 8, 64)

BLOCK = 1 << 16
"""Rows compared with a batch of queries at once: bounds what a search keeps in memory."""

HELD_BYTES = 1 << 30
"""Most bytes of a table that a CPU's process keeps in memory; on other devices it may take half of
theirs."""

Compare = Callable[[Array, Array], Float32[Array, "q b"]]
"""Closeness of queries [q, w] to rows [b, w]: larger is nearer. A function of a module, as each is
a program of its own."""

Prepare = Callable[[np.ndarray], np.ndarray]
"""Function from rows of vectors to rows of a table."""


class Blocks:
    """Table of rows in blocks of equal size: on the device if it fits there, else read block by
    block for every search."""

    def __init__(self, vectors: Vectors, prepare: Prepare, held_bytes: int | None = None):
        self._vectors, self._prepare = vectors, prepare
        self.size = len(vectors)
        # Of a few sizes, as each is a program of its own.
        self._block = min(BLOCK, _power_of_two(self.size))
        like = prepare(vectors[:0])
        self.row_bytes = like.shape[1] * like.dtype.itemsize
        limit = _most_held_bytes() if held_bytes is None else held_bytes
        self.is_held = self.size * self.row_bytes <= limit
        self._held = [jax.device_put(rows) for rows in self._read()] if self.is_held else None

    def __iter__(self) -> Iterator[tuple[int, Shaped[Array | np.ndarray, "b w"]]]:
        """(first row, rows) of each block; the last one is filled up with zeros."""
        starts = range(0, self.size, self._block)
        yield from zip(starts, self._held if self._held is not None else self._read(), strict=True)

    def _read(self) -> Iterator[Shaped[np.ndarray, "b w"]]:
        for start in range(0, self.size, self._block):
            rows = self._prepare(self._vectors[start : start + self._block])
            missing = self._block - len(rows)
            yield np.pad(rows, ((0, missing), (0, 0))) if missing else rows

    def may_be_found(self, start: int, allowed: Allowed) -> Bool[np.ndarray, " b"]:
        """Whether each row of a block may be found; those it was filled up with may not."""
        out = np.zeros(self._block, bool)
        end = min(start + self._block, self.size)
        out[: end - start] = True if allowed is None else allowed[start:end]
        return out

    def nearest(
        self,
        compare: Compare,
        queries: Shaped[np.ndarray, "q w"],
        k: int,
        allowed: Allowed = None,
        approximate: bool = False,
    ) -> Nearest:
        """The k nearest allowed rows to each query, of which there are k, by their closeness.

        With `approximate`, blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
        """
        # For a few k, as each is a program of its own.
        asked = max(16, _power_of_two(k))
        closeness = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        # A batch's time is that of reading the table, however many ask.
        for chosen, count in batches(np.arange(len(queries)), QUERY_BATCHES, filled=0):
            some = jnp.asarray(queries[chosen])
            best = (
                jnp.full((len(chosen), asked), -jnp.inf),
                jnp.full((len(chosen), asked), -1, jnp.int32),
            )
            for start, rows in self:
                mask = self.may_be_found(start, allowed)
                if mask.any():
                    best = _step(compare, approximate, best, some, rows, np.int32(start), mask)
            close, rows = (np.asarray(x)[:count, :k] for x in best)
            closeness[chosen[:count]], found[chosen[:count]] = close, rows
        return Nearest(closeness, found)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


def _most_held_bytes() -> int:
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return HELD_BYTES
    return ((device.memory_stats() or {}).get("bytes_limit") or 8 * HELD_BYTES) // 2


@partial(jax.jit, static_argnums=(0, 1))
def _step(
    compare: Compare,
    approximate: bool,
    best: tuple[Float32[Array, "q k"], Int32[Array, "q k"]],
    queries: Shaped[Array, "q w"],
    rows: Shaped[Array, "b w"],
    start: Int32[Array, ""],
    mask: Bool[Array, " b"],
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
    """The best k of those so far and of a block; the former stand first, so that ties keep lower
    rows."""
    k = best[0].shape[1]
    close = jnp.where(mask[None, :], compare(queries, rows), -jnp.inf)
    top = partial(jax.lax.approx_max_k, recall_target=0.99) if approximate else jax.lax.top_k
    values, columns = top(close, min(k, rows.shape[0]))
    values = jnp.concatenate([best[0], values], axis=1)
    places = jnp.concatenate([best[1], start + columns.astype(jnp.int32)], axis=1)
    values, kept = jax.lax.top_k(values, k)
    return values, jnp.take_along_axis(places, kept, axis=1)
