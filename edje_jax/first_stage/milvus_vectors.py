"""Vectors and their indexes as Milvus takes them.

Embeddings are compared by their products, codes by Hamming distance. Milvus Lite has no binary
vectors: in its files a code is a vector of -1 and 1, whose products tell the same distances, and
takes 32 times the room.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from edje_jax.first_stage.base import Reads
from edje_jax.first_stage.faiss import lists_for
from edje_jax.first_stage.packing import check_codes, hamming_similarity, unpack

IndexKind = Literal["HNSW", "FLAT", "IVF_FLAT", "BIN_FLAT", "BIN_IVF_FLAT"]
KINDS: dict[Reads, tuple[IndexKind, ...]] = {
    "embeddings": ("HNSW", "FLAT", "IVF_FLAT"),
    "codes": ("BIN_FLAT", "BIN_IVF_FLAT"),
}
"""Indexes by the rows that they compare."""

SENT_BYTES = 8 << 20
"""Bytes of vectors that are sent at once: a server takes 64 MiB, metadata included."""
SENT_ROWS = 4096


def default_kind(reads: Reads, is_file: bool) -> IndexKind:
    """Index that is built unless another is named.

    Milvus Lite goes through all rows of a file at every search, a graph or not, and follows a graph
    without regard to filters: comparing all rows is exact there, and about as fast.
    """
    if reads == "codes":
        return "BIN_FLAT"
    return "FLAT" if is_file else "HNSW"


class VectorRows(NamedTuple):
    """Rows for a collection, by rising key."""

    keys: Int64[np.ndarray, " n"]
    """Numbers from 0 that stand for the same row for ever."""
    ids: list[str]
    vectors: Float32[np.ndarray, "n e"] | UInt8[np.ndarray, "n bytes"]
    """Embeddings of unit length, or packed codes."""
    metadata: dict[str, list[Any]] | None = None
    """Values of n rows by their name; None where a row has none."""

    def parts(self, size: int) -> Iterator["VectorRows"]:
        """Rows in parts of at most `size`."""
        for start in range(0, len(self.keys), size):
            yield self.take(slice(start, start + size))

    def take(self, some: slice | np.ndarray) -> "VectorRows":
        """Some of the rows, by a slice or their numbers."""
        numbers = np.arange(len(self.keys))[some].tolist()
        metadata = self.metadata and {
            name: [values[number] for number in numbers] for name, values in self.metadata.items()
        }
        ids = [self.ids[number] for number in numbers]
        return VectorRows(self.keys[some], ids, self.vectors[some], metadata)


@dataclass(frozen=True)
class VectorForm:
    """Form in which a Milvus keeps vectors."""

    reads: Reads
    width: int
    """Dimensions of embeddings, or bits of codes."""
    is_binary: bool
    """Whether codes are kept as bits."""

    @classmethod
    def of(cls, vectors: np.ndarray, has_binary: bool) -> "VectorForm":
        """Form of rows in a Milvus that has binary vectors, or has none.

        Raises:
            ValueError: they are neither embeddings nor packed codes.
        """
        if vectors.dtype == np.float32 and vectors.ndim == 2:
            return cls("embeddings", vectors.shape[1], False)
        check_codes(vectors)
        return cls("codes", 8 * vectors.shape[1], has_binary)

    def __str__(self) -> str:
        return f"{self.reads} of width {self.width}"

    @property
    def type_name(self) -> str:
        """Name of the field's type in `pymilvus.DataType`."""
        return "BINARY_VECTOR" if self.is_binary else "FLOAT_VECTOR"

    @property
    def metric(self) -> str:
        """Name of the measure of nearness."""
        return "HAMMING" if self.is_binary else "IP"

    @property
    def sent_rows(self) -> int:
        """Rows that are sent at once."""
        size = self.width // 8 if self.is_binary else 4 * self.width
        return max(1, min(SENT_ROWS, SENT_BYTES // size))

    def encoded(self, vectors: np.ndarray) -> list[Any]:
        """Vectors as the client takes them."""
        if self.is_binary:
            return [row.tobytes() for row in vectors]
        return list(vectors if self.reads == "embeddings" else unpack(vectors).astype(np.float32))

    def similarities(self, told: np.ndarray) -> Float32[np.ndarray, " k"]:
        """Similarities from the numbers by which Milvus ranks."""
        if self.reads == "embeddings":
            return told.astype(np.float32)
        distances = told if self.is_binary else (self.width - told) / 2
        return hamming_similarity(np.rint(distances).astype(np.int32), self.width)


@dataclass(frozen=True)
class VectorIndex:
    """Index over the vectors of a collection."""

    kind: IndexKind
    lists: int = 1
    """Lists of an inverted file."""

    @classmethod
    def over(cls, kind: IndexKind, rows: int) -> "VectorIndex":
        """Index of a kind that suits so many rows."""
        return cls(kind, lists_for(rows) if "IVF" in kind else 1)

    @property
    def has_lists(self) -> bool:
        """Whether it is an inverted file."""
        return "IVF" in self.kind

    def suits(self, rows: int) -> bool:
        """Whether it still suits so many rows: lists are of up to twice the number, or half."""
        return 0.5 <= self.lists / self.over(self.kind, rows).lists <= 2

    def build_settings(self, form: VectorForm) -> dict[str, Any]:
        """Type and parameters for building it."""
        kind = self.kind.removeprefix("BIN_")
        settings = {"HNSW": {"M": 32, "efConstruction": 200}, "IVF_FLAT": {"nlist": self.lists}}
        return {
            "index_type": f"BIN_{kind}" if form.is_binary else kind,
            "metric_type": form.metric,
            # One level down, where Milvus Lite looks for them, and servers do too.
            "params": {"params": settings.get(kind, {})},
        }

    def search_settings(self, k: int, everything: int | None) -> dict[str, Any]:
        """Parameters of a search for k rows; given a number of rows, one that passes none over."""
        if self.kind == "HNSW":
            return {"ef": max(256, 2 * k, everything or 0)}
        if self.has_lists:
            return {"nprobe": self.lists if everything else max(self.lists // 8, 1)}
        return {}
