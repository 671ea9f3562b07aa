"""First stages of the faiss library."""

from typing import Any

import numpy as np
from jaxtyping import Float32

from edje_jax.first_stage.base import Nearest, nothing


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
        kind = kind if size else "flat"  # The other kinds cannot be made without embeddings
        metric = faiss.METRIC_INNER_PRODUCT
        if kind == "hnsw":
            self._index: Any = faiss.IndexHNSWFlat(width, 32, metric)
            self._index.hnsw.efConstruction, self._index.hnsw.efSearch = 200, 256
        elif kind == "ivf":
            # About sqrt(n) lists, as faiss' guidelines advise; an eighth of them is searched.
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
