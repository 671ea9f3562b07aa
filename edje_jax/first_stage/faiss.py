"""First stages of the faiss library."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32

from edje_jax.first_stage.base import Nearest, Vectors, no_neighbours

FILE = "index.faiss"


class Faiss:
    """Base of the first stages that are an index of the faiss library."""

    is_stored: ClassVar[bool] = True
    version: ClassVar[int] = 1

    def __init__(self, index: Any):
        self._index = index

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None) -> "Faiss":
        """Make embeddings searchable, and write a faiss index into a folder, if given.

        Raises:
            ModuleNotFoundError: faiss is not installed; the message says how to get it.
            OSError: the folder cannot be written to.
        """
        faiss = _import_faiss()
        embeddings = np.ascontiguousarray(vectors[:])
        # Only the plain index can be made without embeddings.
        empty = faiss.IndexFlatIP(vectors.shape[1])
        index = cls._make(faiss, embeddings) if len(embeddings) else empty
        index.add(embeddings)
        if folder:
            try:
                faiss.write_index(index, str(folder / FILE))
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
        return cls(_import_faiss().read_index(str(folder / FILE)))

    @staticmethod
    def _make(faiss: Any, embeddings: Float32[np.ndarray, "n e"]) -> Any:
        """Index of the library, trained where that is needed, to which embeddings can be added."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        if not len(self) or not len(queries):
            return no_neighbours(len(queries), min(k, len(self)))
        if hasattr(self._index, "hnsw"):
            self._index.hnsw.efSearch = max(256, 2 * k)
        similarities, rows = self._index.search(np.ascontiguousarray(queries), min(k, len(self)))
        return Nearest(similarities, rows.astype(np.int32))


class FaissFlat(Faiss):
    """Comparison with every row."""

    @staticmethod
    def _make(faiss: Any, embeddings: Float32[np.ndarray, "n e"]) -> Any:
        return faiss.IndexFlatIP(embeddings.shape[1])


class FaissHnsw(Faiss):
    """A graph of neighbours (HNSW) of 32 edges a row."""

    @staticmethod
    def _make(faiss: Any, embeddings: Float32[np.ndarray, "n e"]) -> Any:
        index = faiss.IndexHNSWFlat(embeddings.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        return index


class FaissIvf(Faiss):
    """About sqrt(n) lists of rows, as faiss' guidelines advise; an eighth of them is searched."""

    @staticmethod
    def _make(faiss: Any, embeddings: Float32[np.ndarray, "n e"]) -> Any:
        size, width = embeddings.shape
        lists = max(min(int(4 * size**0.5), size // 39), 1)
        quantiser = faiss.IndexFlatIP(width)
        index = faiss.IndexIVFFlat(quantiser, width, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(lists // 8, 1)
        index.train(embeddings)
        return index


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ModuleNotFoundError(
            "a faiss first stage needs more: pip install 'edje-jax[faiss]'"
        ) from error
    return faiss
