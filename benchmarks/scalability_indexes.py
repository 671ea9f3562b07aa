"""Indexes of faiss that `scalability.py` measures, over float32 vectors and packed codes."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

BLOCK = 100_000
"""Vectors searched at once by the exact search."""
K = 1000
"""Vectors that a query asks for."""
EDGES, CONSTRUCTION = 32, 40
"""M and efConstruction of graphs, the latter as in faiss by default. efSearch is K."""


class StreamedFlat:
    """Exact search among vectors that come in blocks and are forgotten again."""

    def __init__(self, queries: np.ndarray, k: int):
        self._queries, self._k, self._count = queries, k, 0
        self._index = faiss.IndexFlatIP(queries.shape[1])
        self._scores = np.empty((len(queries), 0), np.float32)
        self.rows = np.empty((len(queries), 0), np.int64)
        self._built = self._searched = 0.0

    def add(self, block: np.ndarray, start: int) -> None:
        """Search a block, whose first vector has the number `start`, and keep the best so far."""
        began = time.perf_counter()
        self._index.add(block)
        built = time.perf_counter()
        scores, rows = self._index.search(self._queries, min(self._k, len(block)))
        scores = np.concatenate([self._scores, scores], axis=1)
        rows = np.concatenate([self.rows, rows + start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._k]
        self._scores = np.take_along_axis(scores, order, axis=1)
        self.rows = np.take_along_axis(rows, order, axis=1)
        self._searched += time.perf_counter() - built
        self._built += built - began
        self._count += len(block)
        self._index.reset()

    def measured(self) -> dict[str, Any]:
        """Seconds, bytes and rows of the search of all blocks together."""
        return {
            "build_seconds": self._built,
            "search_seconds": self._searched,
            "bytes": 4 * self._count * self._queries.shape[1],
            "settings": {"streamed": self._count > BLOCK, "block": BLOCK},
            "found": self.rows,
        }


class Measured:
    """Index of faiss that is timed; settings are what it was made with."""

    def __init__(self, index: Any, seconds: float = 0.0, **settings: int):
        self._index, self._built, self._settings = index, seconds, settings
        if hasattr(index, "hnsw"):
            self._settings = {"M": EDGES, "efConstruction": CONSTRUCTION, "efSearch": K}

    def add(self, rows: np.ndarray) -> None:
        """Add vectors or codes."""
        began = time.perf_counter()
        self._index.add(rows)
        self._built += time.perf_counter() - began

    def measured(self, queries: np.ndarray, k: int) -> dict[str, Any]:
        """Seconds, bytes and rows of a search of all queries."""
        taken: list[float] = []
        while not taken or (len(taken) < 3 and taken[0] < 1):
            began = time.perf_counter()
            _, rows = self._index.search(queries, k)
            taken.append(time.perf_counter() - began)
        return {
            "build_seconds": self._built,
            "search_seconds": statistics.median(taken),
            "bytes": written_bytes(self._index),
            "settings": self._settings,
            "found": rows,
        }


def hnsw(width: int) -> Measured:
    """A graph of vectors, by inner product."""
    return Measured(graph(faiss.IndexHNSWFlat(width, EDGES, faiss.METRIC_INNER_PRODUCT)))


def graph(index: Any) -> Any:
    """Index of a graph with its settings."""
    index.hnsw.efConstruction, index.hnsw.efSearch = CONSTRUCTION, K
    return index


def binary_flat(codes: np.ndarray) -> Measured:
    """Comparison with all codes, by counting as the project's first stage does."""
    index = faiss.IndexBinaryFlat(8 * codes.shape[1])
    index.use_heap = False
    index.query_batch_size = max(1, min(32, (1 << 23) // (K * (index.d + 1))))
    return Measured(index, query_batch_size=index.query_batch_size)


def binary_ivf(codes: np.ndarray) -> Measured:
    """sqrt(n) lists of codes, trained on 64 codes a list; an eighth of them is searched."""
    bits, lists = 8 * codes.shape[1], max(int(len(codes) ** 0.5), 1)
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, lists)
    index.nprobe = max(lists // 8, 1)
    drawn = np.random.default_rng(0).choice(len(codes), min(64 * lists, len(codes)), replace=False)
    began = time.perf_counter()
    index.train(codes[np.sort(drawn)])
    seconds = time.perf_counter() - began
    return Measured(index, seconds, nlist=lists, nprobe=index.nprobe, trained_on=len(drawn))


def binary_hnsw(codes: np.ndarray) -> Measured:
    """A graph of codes."""
    return Measured(graph(faiss.IndexBinaryHNSW(8 * codes.shape[1], EDGES)))


BINARY: dict[str, Callable[[np.ndarray], Measured]] = {
    "binary-flat": binary_flat,
    "binary-ivf": binary_ivf,
    "binary-hnsw": binary_hnsw,
}
"""Indexes of codes uint8 [n, bytes], trained where they need it, by name."""


def written_bytes(index: Any) -> int:
    """Bytes of the file that an index would be."""
    count = 0

    def write(part: bytes) -> int:
        nonlocal count
        count += len(part)
        return len(part)

    writer = faiss.PyCallbackIOWriter(write)
    binary = isinstance(index, faiss.IndexBinary)
    (faiss.write_index_binary if binary else faiss.write_index)(index, writer)
    del writer  # Which hands over what it still holds
    return count
