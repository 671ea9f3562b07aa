"""First stages of the faiss library over packed codes, by Hamming distance."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from edje_jax.first_stage.base import Nearest, Reads, Vectors
from edje_jax.first_stage.faiss import Faiss, lists_for
from edje_jax.first_stage.packing import check_codes, hamming_similarity

COUNTED = 1 << 23
"""Places that a search by counting may ask for at once: 64 MiB."""


class FaissBinary(Faiss):
    """Base of the first stages that are a binary index of the faiss library.

    Rows that are found rank by distance, and by lower row at the same distance.
    """

    reads: ClassVar[Reads] = "codes"

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None) -> "Faiss":
        """Make codes searchable, and write a faiss index into a folder, if given.

        Raises:
            ModuleNotFoundError, OSError: as for embeddings.
            ValueError: the rows are not packed codes.
        """
        check_codes(vectors[:0])
        return super().build(vectors, folder)

    @staticmethod
    def _plain(faiss: Any, width: int) -> Any:
        return faiss.IndexBinaryFlat(8 * width)

    @staticmethod
    def _write(faiss: Any, index: Any, path: str) -> None:
        faiss.write_index_binary(index, path)

    @staticmethod
    def _read(faiss: Any, path: str) -> Any:
        return faiss.read_index_binary(path)

    def _search(self, queries: UInt8[np.ndarray, "q bytes"], k: int) -> Nearest:
        check_codes(queries, self._index.code_size)
        distances, rows = self._index.search(queries, k)
        order = np.lexsort((rows, distances))
        rows = np.take_along_axis(rows, order, axis=1).astype(np.int32)
        similarities = hamming_similarity(
            np.take_along_axis(distances, order, axis=1), self._index.d
        )
        return Nearest(np.where(rows < 0, np.float32(-np.inf), similarities), rows)


class FaissBinaryFlat(FaissBinary):
    """Comparison with every row; of codes at the same distance the lower rows are found."""

    def _search(self, queries: UInt8[np.ndarray, "q bytes"], k: int) -> Nearest:
        # Counting goes through the rows in order and keeps the first k at each distance. The
        # queries asked at once share the memory for these.
        self._index.use_heap = False
        self._index.query_batch_size = max(1, min(32, COUNTED // (k * (self._index.d + 1))))
        return super()._search(queries, k)


class FaissBinaryHnsw(FaissBinary):
    """A graph of neighbours (HNSW) of 32 edges a row."""

    is_exact: ClassVar[bool] = False

    @classmethod
    def _make(cls, faiss: Any, rows: UInt8[np.ndarray, "n bytes"]) -> Any:
        index = faiss.IndexBinaryHNSW(8 * rows.shape[1], 32)
        index.hnsw.efConstruction = 200
        return index


class FaissBinaryIvf(FaissBinary):
    """4 sqrt(n) lists of rows, as for embeddings; an eighth of them is searched (nprobe)."""

    is_exact: ClassVar[bool] = False

    @classmethod
    def _make(cls, faiss: Any, rows: UInt8[np.ndarray, "n bytes"]) -> Any:
        width, lists = rows.shape[1], lists_for(len(rows))
        index = faiss.IndexBinaryIVF(cls._plain(faiss, width), 8 * width, lists)
        index.nprobe = max(lists // 8, 1)
        index.train(rows)
        return index
