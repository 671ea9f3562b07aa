"""Candidates that codes find, rescored by projections and by embeddings, against sorting."""

import numpy as np
import pytest

from edje_jax.first_stage import screening
from edje_jax.first_stage.base import Nearest
from edje_jax.first_stage.codes import Codes
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.packing import pack, unpack
from edje_jax.first_stage.screening import Screening, Searched, rescored


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


EMBEDDINGS, PROJECTIONS = drawn(100, 6), drawn(100, 32, seed=1)
QUERIES, ASKED = drawn(7, 6, seed=2), drawn(7, 32, seed=3)
CODES = pack(PROJECTIONS)


def searched(numbers: Screening, bits: int = 32) -> Searched:
    codes = CODES[:, : bits // 8]
    return Searched(Codes(codes, "numpy"), EMBEDDINGS, codes, bits, numbers)


def best(values: np.ndarray, among: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` of some rows whose values are largest; equal ones in the order given."""
    return among[np.argsort(-values[among], kind="stable")[:keep]]


def test_embeddings_are_searched_at_once():
    exact = Searched(Exact(EMBEDDINGS), EMBEDDINGS)
    near, seconds = exact.candidates(QUERIES, ASKED[:, :0], 9)
    np.testing.assert_array_equal(near.rows, Exact(EMBEDDINGS).nearest(QUERIES, 9).rows)
    assert set(seconds) == {"first_stage"}


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("by_projection", [None, 12])
def test_every_step_keeps_the_best_of_the_one_before(bits, by_projection):
    near, seconds = searched(Screening(30, by_projection), bits).candidates(QUERIES, ASKED, 5)
    signs = unpack(CODES).astype(np.float32)[:, :bits]
    cosines, rescores = QUERIES @ EMBEDDINGS.T, ASKED[:, :bits] @ signs.T
    hamming = np.where(ASKED[:, :bits] > 0, 1, -1) @ signs.T
    for query, own in enumerate(near.rows):
        rows = best(hamming[query], np.arange(100), 30)
        if by_projection:
            rows = best(rescores[query], rows, by_projection)
        np.testing.assert_array_equal(own, best(cosines[query], rows, 5))
    expected = np.take_along_axis(cosines, near.rows, axis=1)
    np.testing.assert_allclose(near.similarities, expected, atol=1e-5)
    steps = {"first_stage", "by_embedding"} | ({"by_projection"} if by_projection else set())
    assert set(seconds) == steps and min(seconds.values()) >= 0


def test_all_rows_by_codes_are_exact_search():
    near, _ = searched(Screening(100)).candidates(QUERIES, ASKED, 100)
    np.testing.assert_array_equal(near.rows, np.argsort(-(QUERIES @ EMBEDDINGS.T), axis=1))


def test_ten_times_k_are_found_by_codes_unless_told_otherwise():
    plain, _ = searched(Screening()).candidates(QUERIES, ASKED, 4)
    told, _ = searched(Screening(40)).candidates(QUERIES, ASKED, 4)
    np.testing.assert_array_equal(plain.rows, told.rows)
    # There are never fewer than k.
    assert searched(Screening(1, 1)).candidates(QUERIES, ASKED, 4)[0].rows.shape == (7, 4)


def test_places_that_are_empty_stay_at_the_end():
    near = Nearest(np.zeros((2, 3), np.float32), np.array([[4, 2, -1], [-1, -1, -1]], np.int32))
    found = rescored(near, np.arange(5.0), lambda query, rows: -rows.astype(np.float32), 2)
    assert found.rows.tolist() == [[2, 4], [-1, -1]]
    assert found.similarities.tolist() == [[-2, -4], [-np.inf, -np.inf]]


def test_equal_similarities_keep_their_order():
    near = Nearest(np.zeros((1, 4), np.float32), np.array([[3, 0, 2, 1]], np.int32))
    found = rescored(near, np.arange(5.0), lambda query, rows: np.zeros(len(rows), np.float32), 3)
    assert found.rows.tolist() == [[3, 0, 2]]


@pytest.mark.parametrize("at_once, times", [(1 << 15, 1), (8, 4), (1, 7)])
def test_a_row_that_several_queries_have_found_is_read_once(monkeypatch, at_once, times):
    read = []

    class Table:
        def __getitem__(self, rows):
            read.append(rows)
            return EMBEDDINGS[rows]

    near = Codes(CODES, "numpy").nearest(pack(ASKED), 4)
    monkeypatch.setattr(screening, "READ", at_once)
    found = rescored(near, Table(), lambda query, rows: rows @ QUERIES[query], 3)
    assert len(read) == times and all(len(np.unique(rows)) == len(rows) for rows in read)
    cosines = QUERIES @ EMBEDDINGS.T
    for query, own in enumerate(found.rows):
        np.testing.assert_array_equal(own, best(cosines[query], near.rows[query], 3))


@pytest.mark.parametrize("name", ["by_codes", "by_projection"])
def test_numbers_of_candidates_start_at_one(name):
    with pytest.raises(ValueError, match=f"{name} 0: candidates count from 1"):
        Screening(**{name: 0})
