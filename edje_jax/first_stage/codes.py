"""Exact search by Hamming distance: every packed code is compared with every query."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int8, UInt8, UInt32

from edje_jax.first_stage.base import Nearest, Reads, Vectors, no_neighbours
from edje_jax.first_stage.blockwise import Compare, device_blocks, nearest_in_blocks
from edje_jax.first_stage.faiss_binary import FaissBinaryFlat
from edje_jax.first_stage.packing import check_codes, fill, hamming, hamming_similarity

Way = Literal["faiss", "numpy", "popcount", "product"]
Search = Callable[[UInt8[np.ndarray, "q bytes"], int], Nearest]
"""The k nearest codes of at least one query, k at most their number."""

KEYS = 1 << 23
"""Distances that NumPy sorts at once: bounds its memory to some hundred MB."""


class Codes:
    """Comparison with every code, by the fastest way that there is; all of them answer the same.

    On an accelerator codes lie on the device, and XOR and a count of bits go through them block by
    block; on a CPU that is faiss' work, or NumPy's where faiss is not installed.
    """

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = False
    version: ClassVar[int] = 1
    reads: ClassVar[Reads] = "codes"

    def __init__(self, vectors: Vectors, way: Way | None = None):
        """Make codes searchable, for measurements by a way of one's choice.

        Raises:
            ValueError: the rows are not packed codes.
        """
        check_codes(vectors[:0])
        self._size, self._width = vectors.shape
        self._search = _WAYS[way or _fastest_way()](vectors)

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None = None) -> "Codes":
        """Copy codes to the device or into memory; nothing is written."""
        return cls(vectors)

    @classmethod
    def open(cls, folder: Path) -> "Codes":
        """Raise an error: nothing is stored."""
        raise FileNotFoundError(f"{folder}: a first stage of codes is built, not opened")

    def __len__(self) -> int:
        return self._size

    def nearest(self, queries: UInt8[np.ndarray, "q bytes"], k: int) -> Nearest:
        check_codes(queries, self._width)
        k = min(k, self._size)
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        return self._search(queries, k)


def _fastest_way() -> Way:
    if jax.default_backend() != "cpu":
        return "popcount"
    return "faiss" if find_spec("faiss") else "numpy"


def _search_with_faiss(vectors: Vectors) -> Search:
    return FaissBinaryFlat.build(vectors, None).nearest


def _search_with_numpy(vectors: Vectors) -> Search:
    return partial(_nearest_with_numpy, vectors[:])


def _search_on_device(compare: Compare, vectors: Vectors) -> Search:
    table, (size, width) = device_blocks(vectors, _words), vectors.shape

    def nearest(queries: UInt8[np.ndarray, "q bytes"], k: int) -> Nearest:
        close, rows = nearest_in_blocks(compare, table, size, _words(queries), k)
        return Nearest(hamming_similarity(-close.astype(np.int32), 8 * width), rows)

    return nearest


def _nearest_with_numpy(
    codes: UInt8[np.ndarray, "n bytes"], queries: UInt8[np.ndarray, "q bytes"], k: int
) -> Nearest:
    size, width = codes.shape
    distances = np.empty((len(queries), k), np.int32)
    rows = np.empty((len(queries), k), np.int32)
    batch = max(1, KEYS // size)
    for start in range(0, len(queries), batch):
        asked = slice(start, start + batch)
        # No two are equal: rows decide between codes at the same distance.
        keys = hamming(queries[asked], codes).astype(np.int64) * size + np.arange(size)
        keys = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)
        distances[asked], rows[asked] = np.divmod(keys, size)
    return Nearest(hamming_similarity(distances, 8 * width), rows)


def _words(codes: UInt8[np.ndarray, "n bytes"]) -> UInt32[np.ndarray, "n words"]:
    return fill(codes, 4).view(np.uint32)


def _by_popcount(
    queries: UInt32[Array, "q words"], rows: UInt32[Array, "b words"]
) -> Float32[Array, "q b"]:
    """Hamming distances, negative; float32 holds them exactly, and its top k is the fast one."""
    different = jax.lax.population_count(queries[:, None] ^ rows[None])
    return -different.sum(-1, dtype=jnp.int32).astype(jnp.float32)


def _by_product(
    queries: UInt32[Array, "q words"], rows: UInt32[Array, "b words"]
) -> Float32[Array, "q b"]:
    """Hamming distances, negative, from products of codes as -1 and 1."""
    products = jax.lax.dot_general(
        _signs(queries), _signs(rows), (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32
    )
    return ((products - 32 * rows.shape[1]) // 2).astype(jnp.float32)


def _signs(words: UInt32[Array, "n words"]) -> Int8[Array, "n bits"]:
    """Bits as -1 and 1, in the order of the words."""
    shifts = jnp.arange(32, dtype=jnp.uint32)
    bits = (words[:, :, None] >> shifts[None, None] & 1).astype(jnp.int8)
    return (2 * bits - 1).reshape(len(words), -1)


_WAYS: dict[Way, Callable[[Vectors], Search]] = {
    "faiss": _search_with_faiss,
    "numpy": _search_with_numpy,
    "popcount": partial(_search_on_device, _by_popcount),
    "product": partial(_search_on_device, _by_product),
}
