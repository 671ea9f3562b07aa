"""Numbers of what counts in an index, images or captions, and the rows of shards that they name."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Gone(NamedTuple):
    """Runs of a shard's rows that count no more, in rising order, none overlapping another."""

    starts: Int[np.ndarray, " r"]
    lengths: Int[np.ndarray, " r"]


NOTHING = Gone(np.empty(0, np.int64), np.empty(0, np.int64))
"""No row: all of a shard count."""


class Places:
    """Rows that count, numbered from 0 shard by shard; memory does not grow with their number.

    Args:
        sizes: rows of each shard, whether they count or not.
        gone: rows of each shard that do not.
    """

    def __init__(self, sizes: Sequence[int], gone: Sequence[Gone]):
        self.sizes = np.asarray(sizes, np.int64)
        """Rows of each shard."""
        self._starts = [np.asarray(one.starts, np.int64) for one in gone]
        self._before = [np.cumsum([0, *one.lengths], dtype=np.int64) for one in gone]
        lost = [before[-1] for before in self._before]
        self._first = np.cumsum([0, *(self.sizes - np.array(lost, np.int64))], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._first[-1])

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
        shards = np.searchsorted(self._first, numbers, side="right") - 1
        rows = numbers - self._first[shards]
        for shard in np.unique(shards):
            if len(starts := self._starts[shard]):
                before, here = self._before[shard], shards == shard
                passed = np.searchsorted(starts - before[:-1], rows[here], side="right")
                rows[here] += before[passed]
        return shards, rows

    def number(
        self, shards: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
    ) -> Int[np.ndarray, " n"]:
        """Number of each row of a shard; -1 for one that counts no more."""
        shards, rows = np.asarray(shards, np.int64), np.asarray(rows, np.int64)
        numbers = self._first[shards] + rows
        for shard in np.unique(shards):
            if len(starts := self._starts[shard]):
                before, here = self._before[shard], shards == shard
                passed = np.searchsorted(starts, rows[here], side="right")
                last = np.maximum(passed - 1, 0)
                lengths = np.diff(before)
                is_gone = (passed > 0) & (rows[here] < starts[last] + lengths[last])
                numbers[here] = np.where(is_gone, -1, numbers[here] - before[passed])
        return numbers

    def counts(self, shard: int) -> int:
        """Number of a shard's rows that count."""
        return int(self._first[shard + 1] - self._first[shard])

    def lost(self, shard: int) -> Int[np.ndarray, " g"]:
        """Rows of a shard that count no more, rising."""
        lengths = np.diff(self._before[shard])
        return np.repeat(self._starts[shard] - self._before[shard][:-1], lengths) + np.arange(
            self._before[shard][-1]
        )

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """(shard, its rows) of the numbers from `start` to before `stop`, run by run in order."""
        for shard in range(
            int(np.searchsorted(self._first, start, side="right")) - 1, len(self.sizes)
        ):
            if (first := int(self._first[shard])) >= stop:
                return
            low, high = max(start - first, 0), min(stop - first, self.counts(shard))
            starts, before = self._starts[shard], self._before[shard]
            edges = starts - before[:-1]
            while low < high:
                passed = int(np.searchsorted(edges, low, side="right"))
                end = min(high, int(edges[passed])) if passed < len(edges) else high
                yield shard, slice(low + int(before[passed]), end + int(before[passed]))
                low = end
