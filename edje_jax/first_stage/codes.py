"""Exact search by Hamming distance: every packed code is compared with every query."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int8, UInt8, UInt32

from edje_jax.first_stage.base import (
    Allowed,
    Nearest,
    Reads,
    Vectors,
    keep_allowed,
    merge_nearest,
    no_neighbours,
)
from edje_jax.first_stage.blockwise import Blocks, Compare
from edje_jax.first_stage.faiss import import_faiss
from edje_jax.first_stage.faiss_binary import COUNTED
from edje_jax.first_stage.packing import check_codes, fill, hamming, hamming_similarity
from edje_jax.system.mapped_files import map_array
from edje_jax.system.processors import usable_cores

Way = Literal["faiss", "numpy", "popcount", "product"]
Search = Callable[[UInt8[np.ndarray, "q bytes"], int, Allowed], Nearest]
"""The k nearest allowed codes of at least one query, of which there are k."""

KEYS = 1 << 23
"""Distances that NumPy sorts at once: bounds its memory to some hundred MB."""
EXCLUDED = 1024
"""Most codes that may not be found and are looked past; of more, each code is asked about."""
PIECE = 1 << 18
"""Least number of codes that a thread of its own goes through."""


class Codes:
    """Comparison with every code, by the fastest way that there is; all of them answer the same.

    On an accelerator codes lie on the device, and XOR and a count of bits go through them block by
    block; on a CPU that is faiss' work, or NumPy's where faiss is not installed.
    """

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = True
    version: ClassVar[int] = 1
    is_fitted: ClassVar[bool] = False
    reads: ClassVar[Reads] = "codes"
    efforts: ClassVar[tuple[int, ...]] = ()

    def __init__(self, vectors: Vectors, way: Way | None = None):
        """Make codes searchable, for measurements by a way of one's choice.

        Raises:
            ValueError: the rows are not packed codes.
        """
        check_codes(vectors[:0])
        self.effort = 0
        self._way: Way = way or _fastest_way()
        self._width = vectors.shape[1]
        # Put together once they are searched: what is only built and written stays where it lies.
        self._parts = [vectors[:]]
        self._search: Search | None = None

    @classmethod
    def build(cls, vectors: Vectors) -> "Codes":
        """Copy codes to the device or into memory."""
        return cls(vectors)

    @classmethod
    def start(cls, vectors: Vectors) -> "Codes":
        """First stage without codes.

        Raises:
            ValueError: the rows are not packed codes.
        """
        return cls(vectors[:0])

    def add(self, rows: UInt8[np.ndarray, "n bytes"]) -> None:
        """Add codes behind those that are there."""
        check_codes(rows, self._width)
        self._parts.append(rows)
        self._search = None

    def write(self, folder: Path) -> Path:
        """Write a .npy file and return it: codes of one length, one after the other.

        Raises:
            OSError: the folder cannot be written to.
        """
        file = folder / f"{len(self)}.npy"
        shape = (len(self), self._width)
        with file.open("wb") as out:
            np.lib.format.write_array_header_1_0(
                out, {"descr": "|u1", "fortran_order": False, "shape": shape}
            )
            for part in self._parts:
                out.write(np.ascontiguousarray(part).data)
        return file

    @classmethod
    def open(cls, file: Path, grows: bool = False) -> "Codes":
        """Map what `write` wrote into memory.

        Raises:
            OSError, ValueError: the file is not there, or damaged.
        """
        return cls(map_array(file))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def nearest(
        self, queries: UInt8[np.ndarray, "q bytes"], k: int, allowed: Allowed = None
    ) -> Nearest:
        check_codes(queries, self._width)
        k = min(k, len(self) if allowed is None else int(np.count_nonzero(allowed)))
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        search = self._search
        if search is None:
            codes = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
            self._parts = [np.ascontiguousarray(codes)]
            search = self._search = _WAYS[self._way](self._parts[0])
        return search(queries, k, allowed)


def _fastest_way() -> Way:
    if jax.default_backend() != "cpu":
        return "popcount"
    return "faiss" if find_spec("faiss") else "numpy"


def _search_with_faiss(codes: UInt8[np.ndarray, "n bytes"]) -> Search:
    faiss = import_faiss()
    count = max(1, min(usable_cores(), len(codes) // PIECE))
    edges = np.linspace(0, len(codes), count + 1).astype(int).tolist()
    pieces = [slice(start, stop) for start, stop in pairwise(edges)]
    # The library has a thread for each query, and those that have none would wait busily.
    pool = ThreadPoolExecutor(count, initializer=partial(faiss.omp_set_num_threads, 1))

    def nearest(queries: UInt8[np.ndarray, "q bytes"], k: int, allowed: Allowed) -> Nearest:
        queries = np.ascontiguousarray(queries)
        if len(queries) >= count:
            return _by_counting(faiss, codes, queries, k, allowed)

        def of_piece(own: slice) -> Nearest:
            some = allowed if allowed is None else allowed[own]
            near = _by_counting(faiss, codes[own], queries, k, some)
            return Nearest(near.similarities, np.where(near.rows < 0, -1, near.rows + own.start))

        return merge_nearest(list(pool.map(of_piece, pieces)), k)

    return nearest


def _by_counting(
    faiss: Any,
    codes: UInt8[np.ndarray, "n bytes"],
    queries: UInt8[np.ndarray, "q bytes"],
    k: int,
    allowed: Allowed,
) -> Nearest:
    """Neighbours by counting: codes at each distance are kept in the order of their rows."""
    size, width = codes.shape
    count = size if allowed is None else int(np.count_nonzero(allowed))
    bitmap = None
    if allowed is not None and size - count > EXCLUDED:
        asked = min(k, count)
        bitmap = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    else:
        asked = min(k + size - count, size)
    if not asked:
        return no_neighbours(len(queries), 0)
    distances = np.empty((len(queries), asked), np.int32)
    rows = np.empty((len(queries), asked), np.int64)
    together = max(1, COUNTED // (asked * (8 * width + 1)))
    pointer = faiss.swig_ptr
    for start in range(0, len(queries), together):
        some = queries[start : start + together]
        faiss.hammings_knn_mc(
            pointer(some), pointer(codes), len(some), size, asked, width,
            pointer(distances[start:]), pointer(rows[start:]), bitmap,
        )  # fmt: skip
    near = Nearest(hamming_similarity(distances, 8 * width), rows)
    return near if allowed is None or bitmap is not None else keep_allowed(near, allowed, k)


def _search_with_numpy(codes: UInt8[np.ndarray, "n bytes"]) -> Search:
    return partial(_nearest_with_numpy, codes)


def _search_on_device(compare: Compare, codes: UInt8[np.ndarray, "n bytes"]) -> Search:
    table, bits = Blocks(codes, _words), 8 * codes.shape[1]

    def nearest(queries: UInt8[np.ndarray, "q bytes"], k: int, allowed: Allowed) -> Nearest:
        close, rows = table.nearest(compare, _words(queries), k, allowed)
        return Nearest(hamming_similarity(-close.astype(np.int32), bits), rows)

    return nearest


def _nearest_with_numpy(
    codes: UInt8[np.ndarray, "n bytes"],
    queries: UInt8[np.ndarray, "q bytes"],
    k: int,
    allowed: Allowed = None,
) -> Nearest:
    place = None if allowed is None else np.flatnonzero(allowed)
    codes = codes if place is None else codes[place]
    size, width = codes.shape
    distances = np.empty((len(queries), k), np.int32)
    rows = np.empty((len(queries), k), np.int64)
    batch = max(1, KEYS // size)
    for start in range(0, len(queries), batch):
        asked = slice(start, start + batch)
        # No two are equal: rows decide between codes at the same distance.
        keys = hamming(queries[asked], codes).astype(np.int64) * size + np.arange(size)
        keys = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)
        distances[asked], rows[asked] = np.divmod(keys, size)
    found = rows if place is None else place[rows]
    return Nearest(hamming_similarity(distances, 8 * width), found)


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


_WAYS: dict[Way, Callable[[UInt8[np.ndarray, "n bytes"]], Search]] = {
    "faiss": _search_with_faiss,
    "numpy": _search_with_numpy,
    "popcount": partial(_search_on_device, _by_popcount),
    "product": partial(_search_on_device, _by_product),
}
