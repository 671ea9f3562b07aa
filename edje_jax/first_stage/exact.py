"""Exact search on the device: every embedding is compared with every query."""

from functools import partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.first_stage.base import Nearest, Reads, Vectors, no_neighbours
from edje_jax.first_stage.blockwise import device_blocks, nearest_in_blocks


class Exact:
    """Comparison with every row: products block by block on the device, top k of each kept.

    On TPU the blocks' candidates come from `approx_max_k`, asked for a recall of 0.99.
    """

    is_exact: ClassVar[bool] = True
    is_stored: ClassVar[bool] = False
    version: ClassVar[int] = 1
    reads: ClassVar[Reads] = "embeddings"

    def __init__(self, vectors: Vectors):
        self._size = len(vectors)
        self._table = device_blocks(vectors, partial(np.asarray, dtype=np.float32))

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None = None) -> "Exact":
        """Copy embeddings to the device; nothing is written."""
        return cls(vectors)

    @classmethod
    def open(cls, folder: Path) -> "Exact":
        """Raise an error: nothing is stored."""
        raise FileNotFoundError(f"{folder}: an exact first stage is built, not opened")

    def __len__(self) -> int:
        return self._size

    def nearest(self, queries: Float32[np.ndarray, "q e"], k: int) -> Nearest:
        k = min(k, self._size)
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        approximate = jax.default_backend() == "tpu"
        return nearest_in_blocks(_products, self._table, self._size, queries, k, approximate)


def _products(queries: Float[Array, "q e"], rows: Float[Array, "b e"]) -> Float[Array, "q b"]:
    return jnp.matmul(queries, rows.T, precision="highest")
