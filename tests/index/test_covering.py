"""First stages over an index that covers some of its shards, against sorting all that counts."""

import dataclasses
from typing import cast

import numpy as np
import pytest

from edje_jax.first_stage.base import FirstStage
from edje_jax.first_stage.packing import pack, unpack
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage
from edje_jax.index import covering
from edje_jax.index.column import Column
from edje_jax.index.covering import Covering
from edje_jax.index.manifest import ColumnType
from edje_jax.index.places import NOTHING, Gone, Places
from edje_jax.index.selection import Selection
from edje_jax.index.store import Store

SIZES = [40, 0, 70, 30, 60]
"""Rows of the index's shards."""
VANISHED = 25
"""Rows of a shard that a first stage has and the index has no more."""


@dataclasses.dataclass(frozen=True)
class World:
    """An index in memory, and a first stage over shards of it."""

    kind: type[FirstStage]
    parts: list[np.ndarray]
    places: Places
    vanished: np.ndarray

    def covering(self, positions: list[int]) -> Covering:
        """Covering whose first stage has these shards, in this order; -1 is the vanished one."""
        column = Column(self.parts, self.places, ColumnType(*self._type))
        parts = [self.vanished if one < 0 else self.parts[one] for one in positions]
        stage = self.kind.build(np.concatenate([self.parts[0][:0], *parts]))
        if not stage.is_exact:
            stage.effort = 1000  # Thorough enough to find all
        sizes = [len(part) for part in parts]
        return Covering(stage, positions, sizes, column.every_row(), self.places)

    @property
    def _type(self) -> tuple[str, tuple[int, ...]]:
        return str(self.parts[0].dtype), self.parts[0].shape[1:]

    def similarities(self, queries: np.ndarray) -> np.ndarray:
        """[q, n] of all that counts."""
        shards, rows = self.places.locate(np.arange(len(self.places)))
        counting = np.stack([self.parts[s][r] for s, r in zip(shards, rows, strict=True)])
        if counting.dtype == np.uint8:
            bits = 8 * counting.shape[1]
            return unpack(queries).astype(np.float32) @ unpack(counting).T.astype(np.float32) / bits
        return queries @ counting.T


def drawn(kind: type[FirstStage], rows: int, seed: int) -> np.ndarray:
    """Unit vectors, or codes."""
    x = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32)
    return pack(x) if kind.reads == "codes" else x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(params=FIRST_STAGES)
def kind(request) -> type[FirstStage]:
    """Every first stage that there is."""
    if request.param.startswith("faiss"):
        pytest.importorskip("faiss")
    return find_first_stage(request.param)


def selected(numbers: np.ndarray) -> Selection:
    """Selection of an index in memory, which has no store."""
    return Selection(numbers, numbers, cast(Store, None))


def make_world(kind: type[FirstStage], gone_share: float) -> World:
    parts = [drawn(kind, size, seed) for seed, size in enumerate(SIZES)]
    rng = np.random.default_rng(9)
    lost = [np.flatnonzero(rng.random(size) < gone_share) for size in SIZES]
    gone = [Gone(rows, np.ones(len(rows), np.int64)) for rows in lost]
    return World(kind, parts, Places(SIZES, gone), drawn(kind, VANISHED, 99))


COVERED = [[0, 1, 2, 3, 4], [3, -1, 0, 2], [-1, 4], [-1], [2, 1]]
"""All of the index, most of it in another order, little of it, nothing of it."""


def assert_finds_the_nearest(
    world: World, found: Covering, queries: np.ndarray, k: int, chosen: np.ndarray | None = None
) -> None:
    """Numbers are right by their similarities: those at one distance may stand in any order."""
    right = world.similarities(queries)
    if chosen is not None:
        right = np.where(np.isin(np.arange(right.shape[1]), chosen), right, -np.inf)
    count = min(k, len(world.places) if chosen is None else len(chosen))
    near = found.nearest(queries, k, None if chosen is None else selected(chosen))
    assert near.rows.shape == near.similarities.shape == (len(queries), count)
    assert near.rows.min(initial=0) >= 0 and near.rows.max(initial=0) < len(world.places)
    own = np.take_along_axis(right, near.rows, axis=1)
    np.testing.assert_allclose(near.similarities, own, atol=1e-6)
    np.testing.assert_allclose(own, -np.sort(-right)[:, :count], atol=1e-6)
    assert all(len(set(rows)) == count for rows in near.rows.tolist())


@pytest.mark.parametrize("positions", COVERED)
@pytest.mark.parametrize("gone", [0.0, 0.3])
def test_what_counts_is_found_wherever_it_lies(kind, positions, gone):
    world = make_world(kind, gone)
    found, queries = world.covering(positions), drawn(kind, 5, 7)
    assert len(found) == len(world.places) and (gone > 0) == (len(found) < sum(SIZES))
    left = [size for i, size in enumerate(SIZES) if i not in positions]
    assert found.num_uncovered == sum(left)
    for k in (1, 30, 1000):
        assert_finds_the_nearest(world, found, queries, k)
    # The nearest to a vanished row is another one.
    assert_finds_the_nearest(world, found, world.vanished[:2], 3)


@pytest.mark.parametrize("few", [0, 40, 1000])
def test_nothing_is_found_but_what_was_chosen(kind, few, monkeypatch):
    """Up to so many are compared one by one, and more are left to the first stage."""
    monkeypatch.setattr(covering, "FEW", few)
    world, queries = make_world(kind, 0.3), drawn(kind, 5, 7)
    found, rng = world.covering([3, -1, 0, 2]), np.random.default_rng(0)
    for count in (1, 39, 100, len(world.places)):
        chosen = np.sort(rng.choice(len(world.places), count, replace=False))
        for k in (1, 20, 1000):
            assert_finds_the_nearest(world, found, queries, k, chosen)
    last = int(np.searchsorted(world.places.locate(np.arange(len(found)))[0], 4))
    for chosen in (np.arange(last), np.arange(last, len(found))):  # In either, and in none
        assert_finds_the_nearest(world, found, queries, 9, chosen)


def test_nothing_chosen_or_asked_finds_nothing(kind):
    world, queries = make_world(kind, 0.3), drawn(kind, 2, 7)
    found = world.covering([3, -1, 0])
    assert found.nearest(queries, 5, selected(np.empty(0, np.int64))).rows.shape == (2, 0)
    assert found.nearest(queries[:0], 5).rows.shape == (0, 5)
    assert found.nearest(queries, 0).rows.shape == (2, 0)


def test_an_index_of_which_nothing_counts_finds_nothing(kind):
    world = make_world(kind, 1.1)
    for positions in COVERED:
        found = world.covering(positions)
        assert len(found) == 0
        assert found.nearest(drawn(kind, 2, 7), 5).rows.shape == (2, 0)


def test_equal_rows_stand_in_the_order_of_their_numbers():
    kind = find_first_stage("codes")
    parts = [np.tile(drawn(kind, 1, 0), (size, 1)) for size in SIZES]
    world = World(kind, parts, Places(SIZES, [NOTHING] * 5), parts[0][:0])
    for positions in ([0, 1, 2, 3, 4], [0, 2], [0, 1, 2, 3]):
        near = world.covering(positions).nearest(parts[0][:1], 150)
        np.testing.assert_array_equal(near.rows[0], np.arange(150))


def test_a_first_stage_that_finds_fewer_leaves_places_empty_at_the_end():
    pytest.importorskip("faiss")
    kind = find_first_stage("faiss-ivf")
    world, queries = make_world(kind, 0.3), drawn(kind, 3, 7)
    found = world.covering([0, 2, 3])
    found.stage.effort = 1
    assert found.stage._index.nlist > 1
    near = found.nearest(queries, 1000)
    assert near.rows.shape == (3, len(world.places))
    uncovered = world.places.counts(4)
    for similarities, rows in zip(*near, strict=True):
        count = int((rows >= 0).sum())
        assert uncovered < count < len(rows) and (rows[count:] == -1).all()
        assert np.isneginf(similarities[count:]).all() and np.isfinite(similarities[:count]).all()
        assert len(set(rows[:count].tolist())) == count


def test_another_first_stage_over_the_same_index_covers_all_of_it(kind):
    world = make_world(kind, 0.3)
    part = world.covering([3, -1])
    whole = part.over(kind.build(np.concatenate(world.parts)))
    assert part.num_uncovered > 0 == whole.num_uncovered
    if whole.stage.is_exact:
        assert_finds_the_nearest(world, whole, drawn(kind, 4, 7), 50)


@pytest.mark.parametrize("name", ["faiss-ivf", "faiss-hnsw"])
def test_a_filter_far_from_the_query_leaves_k_candidates(name, monkeypatch):
    """Lists and graphs lead to what is near a query, and the chosen rows are elsewhere."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = np.eye(40, 64, dtype=np.float32)
    rows = np.repeat(centres, 50, axis=0) + rng.normal(size=(2000, 64)).astype(np.float32) / 50
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    places = Places([2000], [NOTHING])
    column = Column([rows], places, ColumnType("float32", (64,)))
    kind = cast(type[FirstStage], find_first_stage(name))
    stage = kind.build(rows)
    stage.effort = 1
    monkeypatch.setattr(covering, "FEW", 10)
    over = Covering(stage, [0], [2000], column.every_row(), places)
    chosen = np.arange(1900, 2000)
    near = over.nearest(centres[:3], 60, Selection(chosen, chosen, cast(Store, None)))
    assert (near.rows >= 1900).all() and all(len(set(one)) == 60 for one in near.rows.tolist())
    expected = np.take_along_axis(centres[:3] @ rows.T, near.rows, axis=1)
    np.testing.assert_allclose(near.similarities, expected, atol=1e-5)
    assert (np.diff(near.similarities) <= 0).all()


def test_a_selection_is_prepared_once(monkeypatch):
    places = Places([300], [NOTHING])
    rows = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    column = Column([rows], places, ColumnType("float32", (8,)))
    over = Covering(find_first_stage("exact").build(rows), [0], [300], column, places)
    prepared, plain = [], Covering._chosen

    def chosen(self, numbers):
        prepared.append(len(numbers))
        return plain(self, numbers)

    monkeypatch.setattr(Covering, "_chosen", chosen)
    for few in (0, 1 << 16):
        monkeypatch.setattr(covering, "FEW", few)
        numbers = np.arange(0, 300, 7)
        selection = Selection(numbers, numbers, cast(Store, None))
        found = [over.nearest(rows[:2], 5, selection).rows.tolist() for _ in range(3)]
        assert found[0] == found[1] == found[2]
    assert prepared == [43, 43]
