"""Every search of codes against products of -1 and 1: distances, order, and ties.

Covers first_stage/faiss_binary.py.
"""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from edje_jax.first_stage import blockwise, codes, faiss_binary
from edje_jax.first_stage.base import FirstStage, Vectors
from edje_jax.first_stage.codes import Codes
from edje_jax.first_stage.packing import pack, unpack
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage

Build = Callable[[Vectors], FirstStage]
EXACT = ["faiss", "numpy", "popcount", "product", "faiss-binary-flat, stored"]


@pytest.fixture(params=EXACT)
def build(request, tmp_path) -> Build:
    """Every exact search of codes."""
    if request.param.startswith("faiss"):
        pytest.importorskip("faiss")
    if "stored" in request.param:
        kind = find_first_stage("faiss-binary-flat")

        return lambda vectors: kind.open(kind.build(vectors).write(tmp_path))
    return lambda vectors: Codes(vectors, request.param)


def drawn(rows: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, bits // 8), np.uint8)


def assert_is_the_ranking_of_products(
    stage: FirstStage, queries: np.ndarray, rows: np.ndarray, k: int
) -> None:
    """Rows by product of -1 and 1, equal ones by number, and similarities to the last bit."""
    products = unpack(queries).astype(np.int32) @ unpack(rows).astype(np.int32).T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    found = stage.nearest(queries, k)
    np.testing.assert_array_equal(found.rows, order)
    cosines = np.take_along_axis(products, order, axis=1) / (8 * rows.shape[1])
    np.testing.assert_array_equal(found.similarities, cosines.astype(np.float32))
    assert (found.rows.dtype, found.similarities.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("bits", [64, 128, 2048])
def test_codes_rank_as_products_do(build, bits):
    rows, queries = drawn(700, bits), drawn(70, bits, seed=1)
    stage = build(rows)
    assert len(stage) == 700
    for k in (1, 10, 800):
        assert_is_the_ranking_of_products(stage, queries, rows, k)


def test_ties_at_the_cut_rank_by_row(build, monkeypatch):
    """Codes of 8 bits and copies of codes, so that hundreds of rows tie for the last place."""
    monkeypatch.setattr(blockwise, "BLOCK", 64)
    monkeypatch.setattr(codes, "KEYS", 2000)
    monkeypatch.setattr(faiss_binary, "COUNTED", 500)
    for bits in (8, 72):
        rows = drawn(500, bits)
        rows = np.concatenate([rows, rows[::-1]])
        stage = build(rows)
        for k in (1, 7, 100, 999):
            assert_is_the_ranking_of_products(stage, drawn(20, bits, seed=1), rows, k)


def test_codes_that_are_all_equal_stand_in_order(build):
    rows = np.tile(drawn(1, 256), (300, 1))
    stage = build(rows)
    found = stage.nearest(rows[:2], 50)
    np.testing.assert_array_equal(found.rows, np.tile(np.arange(50), (2, 1)))
    assert (found.similarities == 1).all()
    assert (stage.nearest(~rows[:1], 3).similarities == -1).all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_there_may_be_next_to_no_codes(build, count):
    rows, queries = drawn(count, 64), drawn(3, 64, seed=1)
    stage = build(rows)
    assert_is_the_ranking_of_products(stage, queries, rows, 5)
    assert stage.nearest(queries[:0], 5).rows.shape == (0, count)


def test_beginnings_of_longer_codes_are_searched_as_they_lie(build):
    rows = drawn(100, 128)
    assert_is_the_ranking_of_products(build(rows[:, :8]), rows[:4, :8], rows[:, :8], 20)


def test_projections_rank_alike_packed_and_saved_and_unpacked(build, tmp_path):
    x = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    np.save(tmp_path / "codes.npy", pack(x))
    loaded = np.load(tmp_path / "codes.npy", mmap_mode="r")
    signs = np.where(x > 0, 1, -1)
    order = np.argsort(-(signs[:9] @ signs.T), axis=1, kind="stable")[:, :30]
    np.testing.assert_array_equal(build(loaded).nearest(pack(x[:9]), 30).rows, order)


def test_no_query_depends_on_the_others(build):
    rows, queries = drawn(300, 64), drawn(70, 64, seed=1)
    stage = build(rows)
    together = stage.nearest(queries, 20).rows
    for i in (0, 63, 69):
        np.testing.assert_array_equal(stage.nearest(queries[i : i + 1], 20).rows[0], together[i])


BINARY = [name for name in FIRST_STAGES if name.startswith("faiss-binary")]


@pytest.mark.parametrize("name", BINARY)
def test_faiss_finds_nearly_the_same(name, tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    # Neighbours of 50 centres, as codes of real images are.
    noise = np.packbits(rng.random((3000, 256)) < 0.1, axis=1)
    rows = drawn(50, 256)[rng.integers(0, 50, 3000)] ^ noise
    queries = rows[:40] ^ np.packbits(rng.random((40, 256)) < 0.05, axis=1)
    built = find_first_stage(name).build(rows)
    found = built.nearest(queries, 10)
    stored = find_first_stage(name).open(built.write(tmp_path))
    assert len(stored) == 3000
    for before, after in zip(found, stored.nearest(queries, 10), strict=True):
        np.testing.assert_array_equal(after, before)
    truth = Codes(rows, "numpy").nearest(queries, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, truth.rows, strict=True)])
    assert hits >= (1.0 if name == "faiss-binary-flat" else 0.9)
    # Distances are right, and equal ones in order.
    signs = unpack(rows).astype(np.int32)
    products = np.einsum("qb,qkb->qk", unpack(queries).astype(np.int32), signs[found.rows])
    np.testing.assert_array_equal(found.similarities, (products / 256).astype(np.float32))
    for similarities, order in zip(*found, strict=True):
        np.testing.assert_array_equal(np.lexsort((order, -similarities)), np.arange(10))


def test_lists_that_run_out_leave_places_empty_at_the_end():
    pytest.importorskip("faiss")
    rows = drawn(2000, 64)
    found = find_first_stage("faiss-binary-ivf").build(rows).nearest(rows[:5], 2000)
    assert found.rows.shape == (5, 2000)
    for similarities, order in zip(*found, strict=True):
        count = int((order >= 0).sum())
        assert 0 < count < 2000 and (order[count:] == -1).all()
        assert np.isneginf(similarities[count:]).all() and np.isfinite(similarities[:count]).all()
        assert len(set(order[:count].tolist())) == count


@pytest.mark.parametrize("name", ["codes", *BINARY])
def test_rows_and_queries_that_are_no_codes_are_refused(name):
    if name != "codes":
        pytest.importorskip("faiss")
    kind = find_first_stage(name)
    assert kind.reads == "codes"
    with pytest.raises(ValueError, match=r"codes are uint8 .* not float32 \[0, 8\]; `pack` makes"):
        kind.build(np.zeros((4, 8), np.float32))
    stage = kind.build(drawn(100, 64))
    with pytest.raises(ValueError, match="of 64 bits are compared with 128 bits"):
        stage.nearest(drawn(2, 128), 3)
    with pytest.raises(ValueError, match=r"codes are uint8 \[n, bits / 8\], not float32"):
        stage.nearest(np.zeros((2, 8), np.float32), 3)


def test_threads_share_the_codes_of_few_queries(monkeypatch):
    """Pieces of 50 codes for each of four threads, with ties, and pieces of which none may be
    found."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(codes, "PIECE", 50)
    monkeypatch.setattr(codes, "usable_cores", lambda: 4)
    rows = np.tile(drawn(51, 8), (4, 1))
    stage, queries = Codes(rows, "faiss"), drawn(9, 8, seed=1)
    for count in (1, 3, 4, 9):
        for k in (1, 60, 300):
            assert_is_the_ranking_of_products(stage, queries[:count], rows, k)
    allowed = np.arange(204) >= 120
    found, alone = (
        stage.nearest(queries[:2], 70, allowed),
        Codes(rows[120:]).nearest(queries[:2], 70),
    )
    np.testing.assert_array_equal(found.rows, alone.rows + 120)
    np.testing.assert_array_equal(found.similarities, alone.similarities)


@pytest.mark.parametrize("looked_past", [0, 5, 1000])
def test_excluded_codes_are_looked_past_or_asked_about(build, monkeypatch, looked_past):
    monkeypatch.setattr(codes, "EXCLUDED", looked_past)
    rows, queries = drawn(400, 64), drawn(5, 64, seed=1)
    stage = build(rows)
    for excluded in (1, 5, 6, 390):
        allowed = np.ones(400, bool)
        allowed[np.random.default_rng(excluded).choice(400, excluded, replace=False)] = False
        place = np.flatnonzero(allowed)
        for k in (1, 30, 500):
            found, alone = (
                stage.nearest(queries, k, allowed),
                Codes(rows[place], "numpy").nearest(queries, k),
            )
            np.testing.assert_array_equal(found.rows, place[alone.rows])
            np.testing.assert_array_equal(found.similarities, alone.similarities)


def test_lists_are_asked_for_more_until_enough_of_it_may_be_found():
    """The nearest 400 of 500 codes may not be found, so that the first answers hold none."""
    pytest.importorskip("faiss")
    rows, query = drawn(500, 64), drawn(1, 64, seed=1)
    stage = find_first_stage("faiss-binary-ivf").build(rows)
    stage.effort = 500
    order = Codes(rows, "numpy").nearest(query, 500).rows[0]
    allowed = np.ones(500, bool)
    allowed[order[:400]] = False
    for k in (1, 10, 200):
        np.testing.assert_array_equal(
            stage.nearest(query, k, allowed).rows[0], order[400 : 400 + k]
        )


def test_codes_that_were_added_in_parts_are_one_file(tmp_path):
    rows = drawn(90, 256)
    stage = Codes.start(rows[:, :8])
    for part in (rows[:40], rows[40:40], rows[40:]):
        stage.add(part[:, :8])
        assert_is_the_ranking_of_products(stage, rows[:3, :8], rows[: len(stage), :8], 50)
    np.testing.assert_array_equal(np.load(stage.write(tmp_path)), rows[:, :8])
    grown = Codes.open(tmp_path / "90.npy", grows=True)
    grown.add(rows[:5, :8])
    np.testing.assert_array_equal(
        np.load(grown.write(tmp_path)), np.concatenate([rows, rows[:5]])[:, :8]
    )
    with pytest.raises(ValueError, match="of 64 bits are compared with 256 bits"):
        grown.add(rows)


def test_without_faiss_numpy_searches(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = drawn(30, 64)
    assert_is_the_ranking_of_products(Codes.build(rows), rows[:4], rows, 9)


def test_a_binary_index_is_not_opened_as_one_of_embeddings(tmp_path):
    pytest.importorskip("faiss")
    file = find_first_stage("faiss-binary-flat").build(drawn(10, 64)).write(tmp_path)
    with pytest.raises(RuntimeError):
        find_first_stage("faiss-flat").open(file)
