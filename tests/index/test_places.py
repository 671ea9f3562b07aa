"""Numbers of rows that count, against a list of all of them."""

from itertools import pairwise

import numpy as np
import pytest

from edje_jax.index.places import NOTHING, Gone, Places, merge_runs


def runs_of(gone: np.ndarray) -> Gone:
    """Longest runs of rows that lie together."""
    starts = np.flatnonzero(gone & ~np.r_[False, gone[:-1]])
    ends = np.flatnonzero(gone & ~np.r_[gone[1:], False]) + 1
    return Gone(starts, ends - starts)


def single(gone: np.ndarray) -> Gone:
    """Each row as a run of its own."""
    rows = np.flatnonzero(gone)
    return Gone(rows, np.ones(len(rows), np.int64))


def cut(gone: np.ndarray) -> Gone:
    """Runs joined again from single rows, with empty ones between them."""
    rows = np.repeat(np.flatnonzero(gone), 2)
    return merge_runs(rows, rows + (np.arange(len(rows)) % 2))


@pytest.fixture(params=range(12))
def case(request) -> tuple[Places, list[tuple[int, int]], list[np.ndarray]]:
    """(places, (shard, row) of each number, which rows of each shard are gone): some shards are
    empty, or all of their rows gone."""
    rng = np.random.default_rng(request.param)
    sizes = rng.choice([0, 1, 7, 40], rng.integers(0, 8))
    share = rng.choice([0.0, 0.2, 0.8, 1.0], len(sizes))
    gone = [rng.random(size) < one for size, one in zip(sizes, share, strict=True)]
    kept = [
        (shard, row) for shard, lost in enumerate(gone) for row in np.flatnonzero(~lost).tolist()
    ]
    form = (runs_of, single, cut)[request.param % 3]
    return Places(sizes, [form(one) for one in gone]), kept, gone


def test_neighbouring_rows_are_joined_into_the_longest_runs():
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 9, 40):
        for share in (0, 0.3, 0.9, 1):
            gone = rng.random(size) < share
            np.testing.assert_array_equal(cut(gone), runs_of(gone))
    starts, ends = np.array([0, 3, 3, 5, 9]), np.array([3, 3, 5, 8, 12])
    assert [one.tolist() for one in merge_runs(starts, ends)] == [[0, 9], [8, 3]]


def test_a_number_names_a_row_and_a_row_its_number(case):
    places, kept, gone = case
    assert len(places) == len(kept)
    numbers = np.arange(len(kept))
    order = np.random.default_rng(0).permutation(np.r_[numbers, numbers - len(kept)])
    shards, rows = places.locate(order)
    assert list(zip(shards.tolist(), rows.tolist(), strict=True)) == [kept[i] for i in order]
    np.testing.assert_array_equal(places.number(shards, rows), order % max(len(kept), 1))
    known = {place: number for number, place in enumerate(kept)}
    every = [(shard, row) for shard, lost in enumerate(gone) for row in range(len(lost))]
    asked = np.array(every, np.int64).reshape(-1, 2)[::-1]
    found = places.number(asked[:, 0], asked[:, 1])
    assert found.tolist() == [known.get(place, -1) for place in every[::-1]]


def test_shards_tell_what_they_have_and_what_they_have_lost(case):
    places, _, gone = case
    for shard, lost in enumerate(gone):
        np.testing.assert_array_equal(places.lost(shard), np.flatnonzero(lost))
        assert places.counts(shard) == np.count_nonzero(~lost)
    assert places.sizes.tolist() == [len(lost) for lost in gone]


def test_runs_are_the_rows_of_a_slice_in_order(case):
    places, kept, _ = case
    for start in range(0, len(kept) + 1, 3):
        for stop in (start, start + 1, start + 10, len(kept)):
            stop = min(stop, len(kept))
            runs = list(places.runs(start, stop))
            rows = [(shard, row) for shard, own in runs for row in range(own.start, own.stop)]
            assert rows == kept[start:stop]
            assert all(own.start < own.stop for _, own in runs)
            for (shard, own), (following, later) in pairwise(runs):
                assert shard != following or own.stop < later.start, "read at once"


def test_a_number_beyond_the_last_is_refused():
    places = Places([3, 2], [NOTHING, Gone(np.array([0]), np.array([1]))])
    for number in (4, -5):
        with pytest.raises(IndexError, match="numbers go from 0 to 3"):
            places.locate(np.array([0, number]))
    assert places.locate(np.array([], np.int64))[0].shape == (0,)
