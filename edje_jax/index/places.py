"""Numbers of what counts in an index, images or captions, and the rows of shards that they name."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Gone(NamedTuple):
    """Runs of a shard's rows that count no more, in rising order, none overlapping another."""

    starts: Int[np.ndarray, " r"]
    lengths: Int[np.ndarray, " r"]


def merge_runs(starts: Int[np.ndarray, " r"], ends: Int[np.ndarray, " r"]) -> Gone:
    """Rising runs from `starts` to before `ends`; touching ones are merged, empty ones left out."""
    some = ends > starts
    starts, ends = starts[some], ends[some]
    begins = np.ones(len(starts), bool)
    begins[1:] = starts[1:] != ends[:-1]
    starts, ends = starts[begins], ends[np.roll(begins, -1)]
    return Gone(starts, ends - starts)


NOTHING = Gone(np.empty(0, np.int64), np.empty(0, np.int64))
"""No row: all of a shard count."""


class Places:
    """Rows that count, numbered from 0 shard by shard.

    Memory grows with the number of shards and of runs, not with that of rows.

    Args:
        sizes: rows of each shard, whether they count or not.
        gone: rows of each shard that do not.
    """

    def __init__(self, sizes: Sequence[int] | Int[np.ndarray, " s"], gone: Sequence[Gone]):
        self.sizes = np.asarray(sizes, np.int64)
        """Rows of each shard."""
        # Here a row is counted from the first one of the first shard.
        self._first = np.cumsum([0, *self.sizes], dtype=np.int64)
        starts = [first + one.starts for first, one in zip(self._first[:-1], gone, strict=True)]
        self._starts = np.concatenate([NOTHING.starts, *starts])
        lengths = np.concatenate([NOTHING.lengths, *(one.lengths for one in gone)])
        self._before = np.cumsum([0, *lengths], dtype=np.int64)
        """Number of the rows in the runs before each run, and in all of them."""
        self._edges = self._starts - self._before[:-1]
        """Number of the first row that counts behind each run."""
        self._ends = np.concatenate([[0], self._starts + lengths])
        """Row behind the run before each run, and behind the last one."""

    def __len__(self) -> int:
        return int(self._first[-1] - self._before[-1])

    def locate(
        self, numbers: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """(position of its shard, row in it) of each number.

        Raises:
            IndexError: there is no such number.
        """
        numbers = np.asarray(numbers, np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"numbers go from 0 to {len(self) - 1}")
        rows = numbers + self._before[np.searchsorted(self._edges, numbers, side="right")]
        shards = np.searchsorted(self._first, rows, side="right") - 1
        return shards, rows - self._first[shards]

    def number(
        self, shards: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """Number of each row of a shard; -1 for one that counts no more."""
        rows = self._first[np.asarray(shards, np.int64)] + rows
        passed = np.searchsorted(self._starts, rows, side="right")
        return np.where(rows < self._ends[passed], -1, rows - self._before[passed])

    def counts(self, shard: int) -> int:
        """Number of a shard's rows that count."""
        low, high = self._runs_of(shard)
        return int(self.sizes[shard] - (self._before[high] - self._before[low]))

    def lost(self, shard: int) -> Int[np.ndarray, " g"]:
        """Rows of a shard that count no more, rising."""
        low, high = self._runs_of(shard)
        lengths = np.diff(self._before[low : high + 1])
        edges = np.repeat(self._edges[low:high], lengths) - self._first[shard]
        return edges + np.arange(self._before[low], self._before[high])

    def _runs_of(self, shard: int) -> tuple[int, int]:
        low, high = np.searchsorted(self._starts, self._first[shard : shard + 2])
        return int(low), int(high)

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """(shard, its rows) of the numbers from `start` to before `stop`, run by run in order."""
        while start < stop:
            passed = int(np.searchsorted(self._edges, start, side="right"))
            row = start + int(self._before[passed])
            shard = int(np.searchsorted(self._first, row, side="right")) - 1
            first, end = self._first[shard : shard + 2].tolist()
            count = min(stop - start, end - row)
            if passed < len(self._edges):
                count = min(count, int(self._edges[passed]) - start)
            yield shard, slice(row - first, row - first + count)
            start += count
