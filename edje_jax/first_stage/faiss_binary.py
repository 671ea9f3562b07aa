"""First stages of the faiss library over packed codes, by Hamming distance."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from edje_jax.first_stage.base import Nearest, Reads, Vectors, merge_nearest
from edje_jax.first_stage.faiss import (
    HNSW_EFFORTS,
    IVF_EFFORTS,
    Faiss,
    hnsw_settings,
    ivf_settings,
    lists_for,
    training_rows,
)
from edje_jax.first_stage.packing import check_codes, hamming_similarity

COUNTED = 1 << 23
"""Places that a search by counting may ask for at once: 64 MiB."""


class FaissBinary(Faiss):
    """Base of the first stages that are a binary index of the faiss library.

    Rows that are found rank by distance, and by lower row at the same distance.
    """

    reads: ClassVar[Reads] = "codes"

    @classmethod
    def start(cls, vectors: Vectors) -> "Faiss":
        """First stage without rows, prepared for codes such as these.

        Raises:
            ModuleNotFoundError: as for embeddings.
            ValueError: the rows are not packed codes.
        """
        check_codes(vectors[:0])
        return super().start(vectors)

    @staticmethod
    def _plain(faiss: Any, width: int) -> Any:
        return faiss.IndexBinaryFlat(8 * width)

    @staticmethod
    def _write(faiss: Any, index: Any, path: str) -> None:
        faiss.write_index_binary(index, path)

    @staticmethod
    def _read(faiss: Any, path: str, flags: int) -> Any:
        return faiss.read_index_binary(path, flags)

    def _search(self, queries: UInt8[np.ndarray, "q bytes"], k: int, settings: Any) -> Nearest:
        check_codes(queries, self._index.code_size)
        distances, rows = self._index.search(queries, k, params=settings)
        similarities = hamming_similarity(distances, self._index.d)
        return merge_nearest([Nearest(similarities, rows)], k)


class FaissBinaryFlat(FaissBinary):
    """Comparison with every row; of codes at the same distance the lower rows are found."""

    def _search(self, queries: UInt8[np.ndarray, "q bytes"], k: int, settings: Any) -> Nearest:
        # Counting goes through the rows in order and keeps the first k at each distance. The
        # queries asked at once share the memory for these.
        self._index.use_heap = False
        self._index.query_batch_size = max(1, min(32, COUNTED // (k * (self._index.d + 1))))
        return super()._search(queries, k, settings)


class FaissBinaryHnsw(FaissBinary):
    """A graph of neighbours (HNSW) of 32 edges a row; `effort` is efSearch."""

    is_exact: ClassVar[bool] = False
    efforts: ClassVar[tuple[int, ...]] = HNSW_EFFORTS

    def __init__(self, index: Any):
        super().__init__(index)
        self.effort = HNSW_EFFORTS[0]

    @classmethod
    def _make(cls, faiss: Any, vectors: Vectors) -> Any:
        index = faiss.IndexBinaryHNSW(8 * vectors.shape[1], 32)
        index.hnsw.efConstruction = 200
        return index

    def _settings(self, k: int, share: float, selector: Any = None) -> Any:
        return hnsw_settings(self._index, self.effort, k, share, selector)


class FaissBinaryIvf(FaissBinary):
    """4 sqrt(n) lists of rows, as for embeddings; `effort` is how many are searched (nprobe)."""

    is_exact: ClassVar[bool] = False
    is_fitted: ClassVar[bool] = True
    efforts: ClassVar[tuple[int, ...]] = IVF_EFFORTS
    takes_selectors: ClassVar[bool] = False

    def __init__(self, index: Any):
        super().__init__(index)
        self.effort = max(getattr(index, "nlist", 8) // 8, 1)

    @classmethod
    def _make(cls, faiss: Any, vectors: Vectors) -> Any:
        width, lists = vectors.shape[1], lists_for(len(vectors))
        index = faiss.IndexBinaryIVF(cls._plain(faiss, width), 8 * width, lists)
        index.train(training_rows(vectors, lists))
        return index

    def _search(self, queries: UInt8[np.ndarray, "q bytes"], k: int, settings: Any) -> Nearest:
        if hasattr(self._index, "nprobe"):
            self._index.nprobe = settings.nprobe
        return super()._search(queries, k, None)

    def _settings(self, k: int, share: float, selector: Any = None) -> Any:
        return ivf_settings(self._index, self.effort, share, None)
