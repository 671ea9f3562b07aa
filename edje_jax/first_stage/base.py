"""The protocol of a first stage: the k nearest embeddings, or binary codes, of each query.

Embeddings have unit length, so that a product is a cosine. The similarity of two packed codes is
1 - 2 * distance / bits, the cosine of the codes as -1 and 1. Equal similarities rank by lower row.
"""

from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float32, Int, UInt8

Reads = Literal["embeddings", "codes"]
"""Rows that a first stage compares: float32 [n, e], or packed codes uint8 [n, bits / 8]."""


class Nearest(NamedTuple):
    """The k nearest rows of each query, nearest first."""

    similarities: Float32[np.ndarray, "q k"]
    rows: Int[np.ndarray, "q k"]


class Vectors(Protocol):
    """Embeddings float32 [n, w], w = e, or packed codes uint8 [n, w], w = bits / 8: an array, or
    rows on disk that are read where they are taken."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, w)"""
        ...

    def __len__(self) -> int: ...

    def __getitem__(
        self, rows: slice, /
    ) -> Float32[np.ndarray, "k w"] | UInt8[np.ndarray, "k w"]: ...


class FirstStage(Protocol):
    """Embeddings or codes that can be searched.

    A kind of first stage is a class with this form, and a line of `registry.FIRST_STAGES`.
    """

    is_exact: ClassVar[bool]
    """Whether the rows that `nearest` finds are certainly the nearest; else approximately."""
    is_stored: ClassVar[bool]
    """Whether `build` writes files, from which `open` is quicker than building again."""
    version: ClassVar[int]
    """Number to raise when `build` comes to write something else, for a setting of it too: stored
    first stages of another version are built anew."""
    reads: ClassVar[Reads]
    """Kind of the rows that `build` takes, and of the queries that `nearest` takes."""

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None) -> "FirstStage":
        """Make rows searchable, and write what `open` needs into an empty folder, if given.

        Raises:
            ModuleNotFoundError: a library is not installed; the message says how to get it.
            OSError: the folder cannot be written to.
            ValueError: codes are expected, and the rows are something else.
        """
        ...

    @classmethod
    def open(cls, folder: Path) -> "FirstStage":
        """Open what `build` wrote.

        Raises:
            ModuleNotFoundError: as for `build`.
            OSError, RuntimeError: the files are not there, or damaged.
        """
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def nearest(
        self, queries: Float32[np.ndarray, "q w"] | UInt8[np.ndarray, "q w"], k: int
    ) -> Nearest:
        """The min(k, len(self)) nearest rows of each query; an approximate first stage may find
        fewer and says so with row -1 at the end."""
        ...


def no_neighbours(queries: int, k: int) -> Nearest:
    """Neighbours in an empty table, or of no query: arrays of [queries, k], one of them 0."""
    return Nearest(np.empty((queries, k), np.float32), np.empty((queries, k), np.int32))
