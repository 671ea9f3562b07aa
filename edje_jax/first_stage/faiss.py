"""First stages of the faiss library."""

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from edje_jax.first_stage.base import Nearest, Reads, Vectors, no_neighbours

FILE = "index.faiss"


class Faiss:
    """Base of the first stages that are an index of the faiss library."""

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = True
    version: ClassVar[int] = 1
    reads: ClassVar[Reads] = "embeddings"

    def __init__(self, index: Any):
        self._index = index

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None) -> "Faiss":
        """Make rows searchable, and write a faiss index into a folder, if given.

        Raises:
            ModuleNotFoundError: faiss is not installed; the message says how to get it.
            OSError: the folder cannot be written to.
        """
        faiss = _import_faiss()
        rows = np.ascontiguousarray(vectors[:])
        # Only the plain index can be made without rows.
        index = cls._make(faiss, rows) if len(rows) else cls._plain(faiss, vectors.shape[1])
        index.add(rows)
        if folder:
            try:
                cls._write(faiss, index, str(folder / FILE))
            except RuntimeError as error:
                raise OSError(f"{folder / FILE}: cannot be written ({error})") from error
        return cls(index)

    @classmethod
    def open(cls, folder: Path) -> "Faiss":
        """Open the index that `build` wrote.

        Raises:
            ModuleNotFoundError: faiss is not installed.
            RuntimeError: the file is not there, or damaged.
        """
        return cls(cls._read(_import_faiss(), str(folder / FILE)))

    @classmethod
    def _make(cls, faiss: Any, rows: np.ndarray) -> Any:
        """Index of the library, trained where that is needed, to which rows can be added."""
        return cls._plain(faiss, rows.shape[1])

    @staticmethod
    def _plain(faiss: Any, width: int) -> Any:
        """Index of the library that compares a query with every row."""
        return faiss.IndexFlatIP(width)

    @staticmethod
    def _write(faiss: Any, index: Any, path: str) -> None:
        faiss.write_index(index, path)

    @staticmethod
    def _read(faiss: Any, path: str) -> Any:
        return faiss.read_index(path)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, queries: np.ndarray, k: int) -> Nearest:
        if not len(self) or not len(queries):
            return no_neighbours(len(queries), min(k, len(self)))
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = max(256, 2 * k)
        return self._search(np.ascontiguousarray(queries), min(k, len(self)))

    def _search(self, queries: np.ndarray, k: int) -> Nearest:
        similarities, rows = self._index.search(queries, k)
        return Nearest(similarities, rows.astype(np.int32))


class FaissFlat(Faiss):
    """Comparison with every row."""


class FaissHnsw(Faiss):
    """A graph of neighbours (HNSW) of 32 edges a row."""

    is_exact: ClassVar[bool] = False

    @classmethod
    def _make(cls, faiss: Any, rows: Float32[np.ndarray, "n e"]) -> Any:
        index = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        return index


class FaissIvf(Faiss):
    """4 sqrt(n) lists of rows, as faiss' guidelines advise; an eighth (nprobe) is searched."""

    is_exact: ClassVar[bool] = False

    @classmethod
    def _make(cls, faiss: Any, rows: Float32[np.ndarray, "n e"]) -> Any:
        size, width = rows.shape
        lists = lists_for(size)
        index = faiss.IndexIVFFlat(
            cls._plain(faiss, width), width, lists, faiss.METRIC_INNER_PRODUCT
        )
        index.nprobe = max(lists // 8, 1)
        index.train(rows)
        return index


def lists_for(size: int) -> int:
    """Number of inverted lists: 4 sqrt(n), or fewer if these would get less than 39 rows each."""
    return max(min(int(4 * size**0.5), size // 39), 1)


def _import_faiss() -> Any:
    # It tells at every import which of its builds it tried.
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    try:
        import faiss
    except ImportError as error:
        raise ModuleNotFoundError(
            "a faiss first stage needs more: pip install 'edje-jax[faiss]'"
        ) from error
    return faiss
