"""A column of an index over all of its shards."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.index.manifest import ColumnType


class Column:
    """A row for each image (or caption) that counts; `column[rows]` reads these from disk.

    `rows` are a slice or an array of row numbers.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], locations: Int[np.ndarray, "n 2"], type: ColumnType
    ):
        self._parts = parts
        self.locations = locations
        """(shard, row in it) of each row."""
        self._type = type

    def beginning(self, width: int) -> "Column":
        """The first `width` numbers of each row, such as a shorter code of a longer one."""
        parts = [part[:, :width] for part in self._parts]
        return Column(parts, self.locations, replace(self._type, shape=(width,)))

    def __len__(self) -> int:
        return len(self.locations)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, shape of a row)"""
        return (len(self), *self._type.shape)

    def __getitem__(self, rows: slice | Sequence[int] | Int[np.ndarray, " k"]) -> np.ndarray:
        locations = self.locations[rows]
        out = np.empty((len(locations), *self._type.shape), self._type.dtype)
        order = np.argsort(locations[:, 0], kind="stable")
        shards, starts = np.unique(locations[order, 0], return_index=True)
        for shard, chosen in zip(shards, np.split(order, starts[1:]), strict=False):
            out[chosen] = self._parts[shard][locations[chosen, 1]]
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self._type.dtype, copy=False)
