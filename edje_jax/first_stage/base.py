"""The protocol of a first stage: the k nearest embeddings, or binary codes, of each query.

Embeddings have unit length, so that a product is a cosine. The similarity of two packed codes is
1 - 2 * distance / bits, the cosine of the codes as -1 and 1. Equal similarities rank by lower row.
"""

from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

Reads = Literal["embeddings", "codes"]
"""Rows that a first stage compares: float32 [n, e], or packed codes uint8 [n, bits / 8]."""

Allowed = Bool[np.ndarray, " n"] | None
"""Whether each row may be found; None if every one may."""


class BeyondLimits(ValueError):
    """More is asked of a first stage than it gives; the message names the limit and the remedy."""


class Nearest(NamedTuple):
    """The k nearest rows of each query, nearest first; where there are fewer, similarity -inf and
    row -1 at the end."""

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
        self, rows: slice | Int[np.ndarray, " k"], /
    ) -> Float32[np.ndarray, "k w"] | UInt8[np.ndarray, "k w"]: ...


class FirstStage(Protocol):
    """Embeddings or codes that can be searched.

    A kind of first stage is a class with this form, and a line of `registry.FIRST_STAGES`. One that
    can be stored is a `StoredStage` too.
    """

    is_exact: ClassVar[bool]
    """Whether the rows that `nearest` finds are certainly the nearest; else approximately."""
    is_stored: ClassVar[bool]
    """Whether it can be stored, so that opening it is quicker than building it."""
    reads: ClassVar[Reads]
    """Kind of the rows that `build` takes, and of the queries that `nearest` takes."""

    @classmethod
    def build(cls, vectors: Vectors) -> "FirstStage":
        """Make rows searchable.

        Raises:
            ModuleNotFoundError: a library is not installed; the message says how to get it.
            ValueError: codes are expected, and the rows are something else.
        """
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def nearest(
        self,
        queries: Float32[np.ndarray, "q w"] | UInt8[np.ndarray, "q w"],
        k: int,
        allowed: Allowed = None,
    ) -> Nearest:
        """The k nearest allowed rows of each query, or all that there are; a first stage that finds
        fewer, as an approximate one may, says so with row -1 at the end."""
        ...


class StoredStage(FirstStage, Protocol):
    """A first stage that grows and can be stored.

    Of the same rows, added in the same portions, it is the same, whether it was stored and opened
    between them or not.
    """

    version: ClassVar[int]
    """Number to raise when `write` comes to write something else, for a setting of it too: stored
    first stages of another version are built anew."""
    is_fitted: ClassVar[bool]
    """Whether `start` fits it to the rows, so that it suits so many of them."""
    efforts: ClassVar[tuple[int, ...]]
    """Values of `effort` from the quickest search to the most thorough one; none if it is exact."""
    effort: int
    """How thoroughly an approximate one searches."""

    @classmethod
    def start(cls, vectors: Vectors) -> "StoredStage":
        """First stage without rows, prepared for rows such as these.

        Raises:
            ModuleNotFoundError, ValueError: as for `build`.
        """
        ...

    def add(self, rows: np.ndarray) -> None:
        """Add rows behind those that are there."""
        ...

    def write(self, folder: Path) -> Path:
        """Write a file from which `open` makes the same, and return it.

        Raises:
            OSError: the folder cannot be written to.
        """
        ...

    @classmethod
    def open(cls, file: Path, grows: bool = False) -> "StoredStage":
        """Open what `write` wrote: mapped into memory, or read if it is to grow.

        Raises:
            ModuleNotFoundError: as for `build`.
            OSError, RuntimeError, ValueError: the file is not there, or damaged.
        """
        ...


def no_neighbours(queries: int, k: int) -> Nearest:
    """Neighbours in an empty table, or of no query: arrays of [queries, k], one of them 0."""
    return Nearest(np.empty((queries, k), np.float32), np.empty((queries, k), np.int64))


def pad_nearest(near: Nearest, k: int) -> Nearest:
    """Neighbours with row -1 and similarity -inf behind them, k in all."""
    missing = ((0, 0), (0, k - near.rows.shape[1]))
    return Nearest(
        np.pad(near.similarities, missing, constant_values=-np.inf),
        np.pad(near.rows, missing, constant_values=-1),
    )


def merge_nearest(parts: list[Nearest], k: int) -> Nearest:
    """The k best of neighbours that were found in different rows; equal ones by lower row."""
    similarities = np.concatenate([part.similarities for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    similarities = np.where(rows < 0, np.float32(-np.inf), similarities)
    order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -similarities))[:, :k]
    return Nearest(
        np.take_along_axis(similarities, order, axis=1), np.take_along_axis(rows, order, axis=1)
    )


def keep_allowed(near: Nearest, allowed: Bool[np.ndarray, " n"], k: int) -> Nearest:
    """The first k allowed rows of neighbours, filled up with row -1."""
    good = (near.rows >= 0) & allowed[near.rows]
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    good = np.take_along_axis(good, order, axis=1)
    rows = np.where(good, np.take_along_axis(near.rows, order, axis=1), -1)
    close = np.take_along_axis(near.similarities, order, axis=1)
    return pad_nearest(Nearest(np.where(good, close, np.float32(-np.inf)), rows), k)
