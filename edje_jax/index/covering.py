"""A first stage over an index: it finds images, or captions, whichever shards it covers itself."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Int

from edje_jax.first_stage.base import (
    Allowed,
    FirstStage,
    Nearest,
    merge_nearest,
    no_neighbours,
    pad_nearest,
)
from edje_jax.first_stage.codes import Codes
from edje_jax.first_stage.exact import Exact
from edje_jax.index.column import Column
from edje_jax.index.places import Places
from edje_jax.index.selection import Selection

FEW = 1 << 16
"""Rows of a selection up to which they are searched one by one, whatever the first stage."""
Numbers = Int[np.ndarray, " n"]
"""Numbers of images, or of captions, that may be found, rising."""


class _Few(NamedTuple):
    """A selection whose rows are searched one by one."""

    table: FirstStage


class _Many(NamedTuple):
    """A selection of so many rows that the first stage searches among them."""

    allowed: Bool[np.ndarray, " n"]
    rest: Allowed


class Covering:
    """A first stage that covers some shards of an index; `nearest` gives numbers of images, or of
    captions.

    Args:
        stage: its rows are those of some shards, one after the other, whether they count or not.
        positions: position in the index of each shard that it covers; -1 for one that is no longer
            part of it.
        sizes: rows of each of these shards.
        vectors: all rows of the index's column.
        places: numbers of the rows that count.
    """

    def __init__(
        self,
        stage: FirstStage,
        positions: Sequence[int],
        sizes: Sequence[int],
        vectors: Column,
        places: Places,
    ):
        self.stage = stage
        self._positions = np.array(positions, np.int64)
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self._vectors, self._places = vectors, places
        self._remembered: WeakKeyDictionary[Selection, _Few | _Many] = WeakKeyDictionary()
        self._rest = sorted(set(range(len(vectors.parts))) - set(self._positions.tolist()))

    def __len__(self) -> int:
        """Number of images, or captions."""
        return len(self._places)

    def over(self, stage: FirstStage) -> "Covering":
        """First stage over the same index that covers every shard."""
        sizes = [len(part) for part in self._vectors.parts]
        return Covering(stage, range(len(sizes)), sizes, self._vectors, self._places)

    @property
    def num_uncovered(self) -> int:
        """Rows of the index that the first stage does not cover."""
        return sum(int(self._places.sizes[position]) for position in self._rest)

    def nearest(self, queries: np.ndarray, k: int, selection: Selection | None = None) -> Nearest:
        """The k nearest of each query, among the selected ones if some are.

        An approximate first stage may find fewer and says so with row -1 at the end.
        """
        k = min(k, len(self) if selection is None else len(selection.numbers))
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        if selection is None:
            return self._masked(queries, k, self._counting, self._rest_counting)
        chosen = self._remembered.get(selection)
        if chosen is None:
            self._remembered[selection] = chosen = self._chosen(selection.numbers)
        if isinstance(chosen, _Few):
            near = chosen.table.nearest(queries, k)
            return Nearest(near.similarities, selection.numbers[near.rows])
        found = self._masked(queries, k, chosen.allowed, chosen.rest)
        # Lists or a graph may lead to none of the chosen rows, however many there are.
        short = np.flatnonzero((found.rows < 0).any(axis=1))
        if len(short):
            near = self._exactly(queries[short], k, selection.numbers)
            found.similarities[short], found.rows[short] = near
        return found

    def _masked(self, queries: np.ndarray, k: int, allowed: Allowed, rest: Allowed) -> Nearest:
        """The k nearest of the allowed rows of the first stage, and of the rest."""
        found = []
        if allowed is None or allowed.any():
            found.append(self._numbered(self.stage.nearest(queries, k, allowed)))
        if self._rest:
            stage, numbers = self._others
            near = stage.nearest(queries, k, rest)
            found.append(Nearest(near.similarities, numbers[near.rows]))
        return pad_nearest(merge_nearest(found, k), k)

    def _exactly(self, queries: np.ndarray, k: int, chosen: Numbers) -> Nearest:
        """Comparison with all chosen rows, some of which are read at a time."""
        vectors, found = self._vectors.of(self._places), []
        for start in range(0, len(chosen), FEW):
            some = chosen[start : start + FEW]
            near = self._exact(vectors[some]).nearest(queries, k)
            found.append(Nearest(near.similarities, some[near.rows]))
        return merge_nearest(found, k)

    def _chosen(self, chosen: Numbers) -> "_Few | _Many":
        """Table or mask of a selection, which later searches with it use."""
        if len(chosen) <= FEW:
            return _Few(self._exact(self._vectors.of(self._places)[chosen]))
        rest: Allowed = None
        if self._rest:
            _, numbers = self._others
            rest = (numbers >= 0) & np.isin(numbers, chosen)
        return _Many(self._allowed(chosen), rest)

    def _exact(self, rows: np.ndarray | Column) -> FirstStage:
        return Codes(rows) if self.stage.reads == "codes" else Exact(rows)

    def _numbered(self, near: Nearest) -> Nearest:
        """Numbers of the rows that the first stage has found."""
        there = near.rows >= 0
        rows = near.rows[there]
        covered = np.searchsorted(self._starts, rows, side="right") - 1
        numbers = np.full(near.rows.shape, -1, np.int64)
        numbers[there] = self._places.number(self._positions[covered], rows - self._starts[covered])
        return Nearest(near.similarities, numbers)

    def _allowed(self, chosen: Numbers) -> Bool[np.ndarray, " n"]:
        """Whether each row of the first stage is a chosen one."""
        out = np.zeros(int(self._starts[-1]), bool)
        shards, rows = self._places.locate(chosen)
        start = np.full(len(self._places.sizes), -1, np.int64)
        covered = self._positions >= 0
        start[self._positions[covered]] = self._starts[:-1][covered]
        here = start[shards] >= 0
        out[start[shards[here]] + rows[here]] = True
        return out

    @cached_property
    def _counting(self) -> Allowed:
        """Rows of the first stage that count; None if all of them do."""
        out = np.ones(int(self._starts[-1]), bool)
        for i, position in enumerate(self._positions.tolist()):
            own = out[self._starts[i] : self._starts[i + 1]]
            if position < 0:
                own[:] = False
            else:
                own[self._places.lost(position)] = False
        return None if out.all() else out

    @cached_property
    def _others(self) -> tuple[FirstStage, np.ndarray]:
        """(exact search of the rows that are not covered, number of each; -1: it is gone)."""
        rows = [np.arange(self._places.sizes[position]) for position in self._rest]
        shards = np.repeat(self._rest, [len(one) for one in rows])
        numbers = self._places.number(shards, np.concatenate(rows))
        return self._exact(self._vectors.only(self._rest)), numbers

    @cached_property
    def _rest_counting(self) -> Allowed:
        """Rows that the first stage does not cover and that count; None if there are none."""
        return self._others[1] >= 0 if self._rest else None
