"""A column of an index over all of its shards."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.index.fetched_array import FetchedArray
from edje_jax.index.manifest import ColumnType
from edje_jax.index.places import NOTHING, Places
from edje_jax.system.remote_folder import in_threads

Read = Callable[[np.ndarray], np.ndarray]
"""Function from stored rows to rows as they are used, one for each."""


class Column:
    """A row for each image (or caption) that counts; `column[rows]` reads these from disk.

    `rows` are a slice or an array of row numbers.
    """

    def __init__(
        self,
        parts: Sequence[np.ndarray | FetchedArray],
        places: Places,
        type: ColumnType,
        read: Read | None = None,
    ):
        """Take the shards' arrays as they are, or as `read` makes them."""
        self.parts = parts
        self.places = places
        self._type, self._read = type, read
        self._stored = np.empty((0, *type.shape), type.dtype)
        self._like = read(self._stored) if read else self._stored

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, shape of a row)"""
        return (len(self), *self._like.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """Data type of the rows that are read."""
        return self._like.dtype

    def beginning(self, width: int) -> "Column":
        """The first `width` numbers of each row, such as a shorter code of a longer one."""
        parts = [
            part.beginning(width) if isinstance(part, FetchedArray) else part[:, :width]
            for part in self.parts
        ]
        return Column(parts, self.places, replace(self._type, shape=(width,)), self._read)

    def every_row(self) -> "Column":
        """Column with a row for each one of the shards, whether it counts or not."""
        places = Places([len(part) for part in self.parts], [NOTHING] * len(self.parts))
        return Column(self.parts, places, self._type, self._read)

    def only(self, shards: Sequence[int]) -> "Column":
        """Column of every row of some shards."""
        parts = [self.parts[shard] for shard in shards]
        return Column(parts, self.places, self._type, self._read).every_row()

    def of(self, places: Places) -> "Column":
        """Column of the rows that are numbered otherwise."""
        return Column(self.parts, places, self._type, self._read)

    def fetch(self) -> None:
        """Have the column's files on this machine, if they are those of a remote index."""
        in_threads(FetchedArray.fetch, self._missing(range(len(self.parts))))

    def _missing(self, shards: Iterable[int]) -> list[FetchedArray]:
        """Arrays of some shards that have to be fetched before they can be read."""
        parts = (self.parts[shard] for shard in shards)
        return [part for part in parts if isinstance(part, FetchedArray) and not part.is_here]

    def __getitem__(self, rows: slice | Sequence[int] | Int[np.ndarray, " k"]) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            spans = list(self.places.runs(start, stop)) if step == 1 else []
            if spans and not self._missing(shard for shard, _ in spans):
                runs = [self.parts[shard][own] for shard, own in spans]
                # A run of one shard is not copied.
                read = runs[0] if len(runs) == 1 else np.concatenate([self._stored, *runs])
                return self._read(read) if self._read else read
            rows = np.arange(start, stop, step)
        shards, own = self.places.locate(np.asarray(rows, np.int64))
        out = np.empty((len(shards), *self._stored.shape[1:]), self._stored.dtype)
        order = np.argsort(shards, kind="stable")
        known, starts = np.unique(shards[order], return_index=True)

        def read_shard(shard_and_chosen: tuple[int, np.ndarray]) -> None:
            shard, chosen = shard_and_chosen
            out[chosen] = self.parts[shard][own[chosen]]

        reads = list(zip(known.tolist(), np.split(order, starts[1:]), strict=False))
        if self._missing(known):
            in_threads(read_shard, reads)  # Several are fetched at once
        else:
            for read in reads:
                read_shard(read)
        return self._read(out) if self._read else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)
