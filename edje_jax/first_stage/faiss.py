"""First stages of the faiss library."""

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8

from edje_jax.first_stage.base import Allowed, Nearest, Reads, Vectors, keep_allowed, no_neighbours

BLOCK = 1 << 16
"""Rows that are added at once."""
SAMPLE = 64
"""Rows for each list that lists are trained on."""
MOST_LISTS = 1 << 14
"""Most inverted lists: a query is compared with the centre of each."""
HNSW_EFFORTS = (256, 512, 1024, 2048)
"""Values of efSearch. Twice the rows that are asked for is the least in any case, so that smaller
ones would be no quicker where recall is measured."""
IVF_EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Values of nprobe."""


class Faiss:
    """Base of the first stages that are an index of the faiss library."""

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = True
    version: ClassVar[int] = 2
    is_fitted: ClassVar[bool] = False
    reads: ClassVar[Reads] = "embeddings"
    efforts: ClassVar[tuple[int, ...]] = ()
    takes_selectors: ClassVar[bool] = True
    """Whether the library's index can be told which rows it may find."""

    def __init__(self, index: Any):
        self._index = index
        self.effort = 0

    @classmethod
    def build(cls, vectors: Vectors) -> "Faiss":
        """Make rows searchable.

        Raises:
            ModuleNotFoundError: faiss is not installed; the message says how to get it.
        """
        stage = cls.start(vectors)
        for start in range(0, len(vectors), BLOCK):
            stage.add(vectors[start : start + BLOCK])
        return stage

    @classmethod
    def start(cls, vectors: Vectors) -> "Faiss":
        """First stage without rows, prepared for rows such as these.

        Raises:
            ModuleNotFoundError: as for `build`.
        """
        faiss = import_faiss()
        if not len(vectors):  # Only the plain index can be made without rows
            return cls(cls._plain(faiss, vectors.shape[1]))
        return cls(cls._make(faiss, vectors))

    def add(self, rows: np.ndarray) -> None:
        """Add rows behind those that are there."""
        if hasattr(self._index, "hnsw"):
            # Rows' levels are drawn: the same ones, wherever a build was cut short.
            self._index.hnsw.rng = import_faiss().RandomGenerator(len(self))
        self._index.add(np.ascontiguousarray(rows))

    def write(self, folder: Path) -> Path:
        """Write a file of the library and return it.

        Raises:
            OSError: the folder cannot be written to.
        """
        file = folder / f"{len(self)}.faiss"
        try:
            self._write(import_faiss(), self._index, str(file))
        except RuntimeError as error:
            raise OSError(f"{file}: cannot be written ({error})") from error
        return file

    @classmethod
    def open(cls, file: Path, grows: bool = False) -> "Faiss":
        """Open what `write` wrote: mapped into memory, or read if it is to grow.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            RuntimeError: the file is not there, or damaged.
        """
        faiss = import_faiss()
        return cls(cls._read(faiss, str(file), 0 if grows else faiss.IO_FLAG_MMAP_IFC))

    @classmethod
    def _make(cls, faiss: Any, vectors: Vectors) -> Any:
        """Index of the library, trained where that is needed, to which rows can be added."""
        return cls._plain(faiss, vectors.shape[1])

    @staticmethod
    def _plain(faiss: Any, width: int) -> Any:
        """Index of the library that compares a query with every row."""
        return faiss.IndexFlatIP(width)

    @staticmethod
    def _write(faiss: Any, index: Any, path: str) -> None:
        faiss.write_index(index, path)

    @staticmethod
    def _read(faiss: Any, path: str, flags: int) -> Any:
        return faiss.read_index(path, flags)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, queries: np.ndarray, k: int, allowed: Allowed = None) -> Nearest:
        count = len(self) if allowed is None else int(np.count_nonzero(allowed))
        found = min(k, count)
        if not found or not len(queries):
            return no_neighbours(len(queries), found)
        queries = np.ascontiguousarray(queries)
        if allowed is None or count == len(self):
            return self._search(queries, found, self._settings(found, 1.0))
        share = count / len(self)
        if self.takes_selectors:
            bits = np.packbits(allowed, bitorder="little")
            selector = import_faiss().IDSelectorBitmap(bits)
            return self._search(queries, found, self._settings(found, share, selector))
        return self._filtered(queries, found, allowed, share)

    def _settings(self, k: int, share: float, selector: Any = None) -> Any:
        """Parameters of a search for k rows, where a share of all rows may be found."""
        return import_faiss().SearchParameters(sel=selector) if selector else None

    def _search(self, queries: np.ndarray, k: int, settings: Any) -> Nearest:
        similarities, rows = self._index.search(queries, k, params=settings)
        return Nearest(np.where(rows < 0, np.float32(-np.inf), similarities), rows)

    def _filtered(self, queries: np.ndarray, k: int, allowed: np.ndarray, share: float) -> Nearest:
        """Search for more rows than are asked for, until enough of them are allowed."""
        asked = min(len(self), int(2 * k / share) + k)
        while True:
            near = self._search(queries, asked, self._settings(asked, share))
            kept = keep_allowed(near, allowed, k)
            if asked == len(self) or (kept.rows >= 0).all() or (near.rows[:, -1] < 0).all():
                return kept
            asked = min(len(self), 4 * asked)


class FaissFlat(Faiss):
    """Comparison with every row."""


class FaissHnsw(Faiss):
    """A graph of neighbours (HNSW) of 32 edges a row; `effort` is efSearch."""

    is_exact: ClassVar[bool] = False
    efforts: ClassVar[tuple[int, ...]] = HNSW_EFFORTS

    def __init__(self, index: Any):
        super().__init__(index)
        self.effort = HNSW_EFFORTS[0]

    @classmethod
    def _make(cls, faiss: Any, vectors: Vectors) -> Any:
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        return index

    def _settings(self, k: int, share: float, selector: Any = None) -> Any:
        return hnsw_settings(self._index, self.effort, k, share, selector)


class FaissIvf(Faiss):
    """4 sqrt(n) lists of rows, as faiss' guidelines advise; `effort` is how many are searched
    (nprobe)."""

    is_exact: ClassVar[bool] = False
    is_fitted: ClassVar[bool] = True
    efforts: ClassVar[tuple[int, ...]] = IVF_EFFORTS

    def __init__(self, index: Any):
        super().__init__(index)
        self.effort = max(getattr(index, "nlist", 8) // 8, 1)

    @classmethod
    def _make(cls, faiss: Any, vectors: Vectors) -> Any:
        lists, width = lists_for(len(vectors)), vectors.shape[1]
        index = faiss.IndexIVFFlat(
            cls._plain(faiss, width), width, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.train(training_rows(vectors, lists))
        return index

    def _settings(self, k: int, share: float, selector: Any = None) -> Any:
        return ivf_settings(self._index, self.effort, share, selector)


def hnsw_settings(index: Any, effort: int, k: int, share: float, selector: Any) -> Any:
    """Parameters of a graph's search: the fewer rows may be found, the further it looks."""
    depth = min(int(max(effort, 2 * k) / share), max(4096, 2 * k))
    return import_faiss().SearchParametersHNSW(sel=selector, efSearch=depth)


def ivf_settings(index: Any, effort: int, share: float, selector: Any) -> Any:
    """Parameters of a search of lists: the fewer rows may be found, the more lists."""
    if not hasattr(index, "nlist"):
        return None
    lists = min(int(np.ceil(effort / share)), index.nlist)
    return import_faiss().SearchParametersIVF(sel=selector, nprobe=lists)


def lists_for(size: int) -> int:
    """Number of inverted lists: 4 sqrt(n), or fewer if these would get less than 39 rows each."""
    return max(min(int(4 * size**0.5), size // 39, MOST_LISTS), 1)


def training_rows(
    vectors: Vectors, lists: int
) -> Float32[np.ndarray, "n e"] | UInt8[np.ndarray, "n bytes"]:
    """Rows that the centres of lists are fitted to, drawn from all: the same ones every time."""
    size = len(vectors)
    count = min(size, max(SAMPLE * lists, 1024))
    drawn = np.random.default_rng(0).choice(size, count, replace=False)
    return np.ascontiguousarray(vectors[np.sort(drawn)])


def import_faiss() -> Any:
    """Module `faiss`.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    # It tells at every import which of its builds it tried.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ModuleNotFoundError(
            "a faiss first stage needs more: pip install 'edje-jax[faiss]'"
        ) from error
    return faiss
