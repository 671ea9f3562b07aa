"""Columns of an index that are made of its images' codes and of its captions."""

import numpy as np

from edje_jax.config.model import EmbeddingDtype
from edje_jax.first_stage.packing import pack
from edje_jax.index.embeddings import to_stored
from edje_jax.index.manifest import ColumnType
from edje_jax.runtimes.base import Embedded

CODES = {"embeddings": "codes", "captions": "caption_codes"}
"""Column of embeddings -> that of the codes of its rows, in an index by a model with codes."""


def code_column_types(bits: int) -> dict[str, ColumnType]:
    """Types of the columns of codes: packed, of the longest length; none for 0 bits."""
    if not bits:
        return {}
    return {
        CODES["embeddings"]: ColumnType("uint8", (bits // 8,)),
        CODES["captions"]: ColumnType("uint8", (bits // 8,), per="caption"),
    }


def caption_columns(texts: Embedded, dtype: EmbeddingDtype) -> dict[str, np.ndarray]:
    """Columns that have a row for each caption, embeddings in the dtype in which they are kept."""
    columns = {"captions": to_stored(texts.embeddings, dtype)}
    if texts.projections.shape[1]:
        columns[CODES["captions"]] = pack(texts.projections)
    return columns
