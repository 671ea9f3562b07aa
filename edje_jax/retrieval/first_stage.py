"""The first stage: whose embeddings are nearest to a query's. One protocol, several engines.

Embeddings have unit length, so that a product is a cosine. Equal similarities rank by lower row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from edje_jax.data.buckets import batches

QUERY_BATCHES = (1, 8, 64)
BLOCK = 1 << 16
"""Embeddings compared with a batch of queries at once: bounds what a search keeps in memory."""


class Nearest(NamedTuple):
    """The k nearest rows of each query, nearest first."""

    similarities: Float32[np.ndarray, "q k"]
    rows: Int[np.ndarray, "q k"]


def nothing(queries: int, k: int) -> Nearest:
    """Of an empty table, or for no query."""
    return Nearest(np.empty((queries, k), np.float32), np.empty((queries, k), np.int32))


class FirstStage(Protocol):
    """Embeddings that can be searched."""

    def __len__(self) -> int:
        """Rows."""
        ...

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        """The min(k, len(self)) nearest rows of each query; an approximate engine may find fewer
        and says so with row -1 at the end."""
        ...


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


class Faiss:
    """An index of the faiss library: `flat` compares every row, `hnsw` and `ivf` some.

    Raises:
        ModuleNotFoundError: faiss is not installed; the message says how.
    """

    def __init__(self, embeddings: Float32[np.ndarray, "n e"], kind: str = "flat"):
        try:
            import faiss
        except ImportError as error:
            raise ModuleNotFoundError(
                "a faiss first stage needs more: pip install 'edje-jax[faiss]'"
            ) from error
        size, width = embeddings.shape
        kind = kind if size else "flat"  # The others cannot be made of nothing
        metric = faiss.METRIC_INNER_PRODUCT
        if kind == "hnsw":
            self._index: Any = faiss.IndexHNSWFlat(width, 32, metric)
            self._index.hnsw.efConstruction, self._index.hnsw.efSearch = 200, 256
        elif kind == "ivf":
            # About sqrt(n) lists, as faiss' guidelines have it, and an eighth of them searched.
            lists = max(min(int(4 * size**0.5), size // 39), 1)
            self._index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, metric)
            self._index.nprobe = max(lists // 8, 1)
            self._index.train(np.ascontiguousarray(embeddings))
        else:
            self._index = faiss.IndexFlatIP(width)
        self._index.add(np.ascontiguousarray(embeddings))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        if not len(self) or not len(queries):
            return nothing(len(queries), min(k, len(self)))
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = max(256, 2 * k)
        similarities, rows = self._index.search(np.ascontiguousarray(queries), min(k, len(self)))
        return Nearest(similarities, rows.astype(np.int32))


ENGINES: dict[str, Callable[[np.ndarray], FirstStage]] = {
    "exact": Exact,
    "faiss-flat": partial(Faiss, kind="flat"),
    "faiss-hnsw": partial(Faiss, kind="hnsw"),
    "faiss-ivf": partial(Faiss, kind="ivf"),
}
"""By the name that `--first-stage` takes."""
