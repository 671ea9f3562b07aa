"""Stored forms of embeddings, which have unit length: float32, or rounded to float16 or int8.

int8 keeps the direction of a row, x / max|x| * 127 rounded, and no scale: a row that is read gets
unit length again, as one of float16 does.
"""

import numpy as np
from jaxtyping import Float32, Shaped

from edje_jax.config.model import EmbeddingDtype

LONGEST = 127


def to_stored(
    embeddings: Float32[np.ndarray, "n e"], dtype: EmbeddingDtype
) -> Shaped[np.ndarray, "n e"]:
    """Embeddings in the form that an index stores."""
    if dtype == "float32":
        return embeddings
    if dtype == "float16":
        return embeddings.astype(np.float16)
    largest = np.abs(embeddings).max(axis=1, keepdims=True, initial=1e-30)
    return np.rint(embeddings / largest * np.float32(LONGEST)).astype(np.int8)


def from_stored(rows: Shaped[np.ndarray, "n e"]) -> Float32[np.ndarray, "n e"]:
    """Embeddings of stored rows: these themselves if they are float32, else of unit length."""
    if rows.dtype == np.float32:
        return rows
    read = rows.astype(np.float32)
    lengths = np.linalg.norm(read, axis=1, keepdims=True)
    return read / np.maximum(lengths, np.float32(1e-30))
