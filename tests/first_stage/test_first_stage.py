"""Every first stage against NumPy, as it was built and as it was stored.

Covers first_stage/base.py, first_stage/blockwise.py, first_stage/exact.py, first_stage/faiss.py
and first_stage/registry.py.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from edje_jax.first_stage import blockwise
from edje_jax.first_stage.base import (
    Nearest,
    keep_allowed,
    merge_nearest,
    no_neighbours,
    pad_nearest,
)
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.faiss import FaissFlat
from edje_jax.first_stage.packing import pack, unpack
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let faiss have one thread: with several, a graph depends on which is first."""
    faiss = pytest.importorskip("faiss")
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def expected_rows(embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ embeddings.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("rows, block", [(300, 1 << 16), (300, 100), (301, 64), (5, 2)])
def test_exact_is_what_sorting_gives(monkeypatch, rows, block):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    embeddings, queries = unit(rows), unit(70, seed=1)
    stage = Exact(embeddings)
    for k in (1, 10, rows + 3):
        found = stage.nearest(queries, k)
        assert found.rows.shape == (70, min(k, rows))
        np.testing.assert_array_equal(found.rows, expected_rows(embeddings, queries, k))
        picked = np.take_along_axis(queries @ embeddings.T, found.rows, axis=1)
        np.testing.assert_allclose(found.similarities, picked, atol=1e-6)


def test_equal_similarities_rank_by_row(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    same = np.tile(unit(1), (10, 1))
    np.testing.assert_array_equal(Exact(same).nearest(unit(1), 10).rows[0], np.arange(10))


class OnDisk:
    """Rows that are read slice by slice, and never many at once."""

    def __init__(self, rows: np.ndarray, most: int):
        self._rows, self._most, self.read = rows, most, 0
        self.shape = rows.shape

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        out = self._rows[rows]
        assert len(out) <= self._most
        self.read += len(out)
        return out


def test_embeddings_that_do_not_fit_are_read_at_every_search(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 64)
    embeddings, queries = unit(300), unit(5, seed=1)
    allowed = np.arange(300) % 3 > 0
    allowed[64:128] = False
    table = OnDisk(embeddings, 64)
    streamed, held = Exact(table, held_bytes=0), Exact(embeddings)
    assert table.read == 0
    for mask in (None, allowed):
        for ours, expected in zip(
            streamed.nearest(queries, 20, mask), held.nearest(queries, 20, mask), strict=True
        ):
            np.testing.assert_array_equal(ours, expected)
    assert table.read == 600
    assert Exact(OnDisk(embeddings, 64), held_bytes=300 * 8 * 4).nearest(queries, 3).rows.shape
    np.testing.assert_array_equal(
        held.nearest(queries, 20).rows, expected_rows(embeddings, queries, 20)
    )


def similarity(kind: type, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[q, n]"""
    if kind.reads == "codes":
        signs = [unpack(x).astype(np.float32) for x in (queries, rows)]
        return signs[0] @ signs[1].T / signs[1].shape[1]
    return queries @ rows.T


@pytest.mark.parametrize("excluded", [0, 1, 3, 250, 292, 300])
@pytest.mark.parametrize("name", FIRST_STAGES)
def test_rows_that_may_not_be_found_are_not(name, excluded):
    """Nothing but them is missing, where the search is a thorough one."""
    if name.startswith("faiss"):
        pytest.importorskip("faiss")
    kind, rng = find_first_stage(name), np.random.default_rng(excluded)
    rows, queries = (
        pack(unit(n, 64, n)) if kind.reads == "codes" else unit(n, 16, n) for n in (300, 6)
    )
    stage = kind.build(rows)
    if not stage.is_exact:
        stage.effort = 1000
    allowed = np.ones(300, bool)
    # The nearest of the first query among them.
    allowed[np.argsort(-similarity(kind, queries[:1], rows)[0], kind="stable")[: excluded // 2]] = (
        False
    )
    left = np.flatnonzero(allowed)
    allowed[rng.choice(left, excluded - excluded // 2, replace=False)] = False
    right = np.where(allowed, similarity(kind, queries, rows), -np.inf)
    for k in (1, 20, 400):
        found = stage.nearest(queries, k, allowed)
        count = min(k, 300 - excluded)
        assert found.rows.shape == found.similarities.shape == (6, count)
        assert (found.rows >= 0).all() and allowed[found.rows].all()
        np.testing.assert_allclose(found.similarities, -np.sort(-right)[:, :count], atol=1e-6)
        own = np.take_along_axis(right, found.rows, axis=1)
        np.testing.assert_allclose(found.similarities, own, atol=1e-6)
        assert all(len(set(ours)) == count for ours in found.rows.tolist())


def test_rows_that_are_not_found_stand_at_the_end():
    none = pad_nearest(no_neighbours(2, 0), 3)
    assert (none.rows == -1).all() and np.isneginf(none.similarities).all()
    near = Nearest(np.array([[0.9, 0.5, 0.1]], np.float32), np.array([[4, 1, -1]]))
    other = Nearest(np.array([[0.9, -np.inf]], np.float32), np.array([[2, -1]]))
    merged = merge_nearest([near, other], 4)
    assert merged.rows.tolist() == [[2, 4, 1, -1]]
    np.testing.assert_allclose(merged.similarities, [[0.9, 0.9, 0.5, -np.inf]])
    kept = keep_allowed(near, np.array([True, True, True, True, False]), 2)
    assert kept.rows.tolist() == [[1, -1]] and np.isneginf(kept.similarities[0, 1])


STORED = [name for name in FIRST_STAGES if find_first_stage(name).is_stored]


@pytest.mark.parametrize("name", STORED)
def test_a_first_stage_that_was_stored_between_two_portions_is_the_same(name, tmp_path, one_thread):
    if name.startswith("faiss"):
        pytest.importorskip("faiss")
    kind = find_first_stage(name)
    rows = pack(unit(400, 64)) if kind.reads == "codes" else unit(400, 16)
    portions = rows[:150], rows[150:260], rows[260:]
    whole, stage = kind.start(rows), kind.start(rows)
    assert len(whole) == 0 and kind.is_exact == (not kind.efforts)
    for number, portion in enumerate(portions):
        whole.add(portion)
        (tmp_path / str(number)).mkdir()
        file = stage.write(tmp_path / str(number))
        stage = kind.open(file, grows=True)
        file.unlink()
        stage.add(portion)
    files = [one.write(tmp_path / str(i)).read_bytes() for i, one in enumerate((whole, stage))]
    assert files[0] == files[1] and len(stage) == 400


def test_no_query_depends_on_the_others():
    embeddings, queries = unit(200), unit(64, seed=2)
    stage = Exact(embeddings)
    together = stage.nearest(queries, 20)
    for i in (0, 7, 63):
        alone = stage.nearest(queries[i : i + 1], 20)
        np.testing.assert_array_equal(alone.rows[0], together.rows[i])
        np.testing.assert_allclose(alone.similarities[0], together.similarities[i], atol=1e-6)


@pytest.mark.parametrize(
    "name, share", [("faiss-flat", 1.0), ("faiss-hnsw", 0.95), ("faiss-ivf", 0.5)]
)
def test_faiss_finds_nearly_the_same(name, share, tmp_path):
    pytest.importorskip("faiss")
    embeddings, queries = unit(3000, 16), unit(40, 16, seed=1)
    built = find_first_stage(name).build(embeddings)
    found = built.nearest(queries, 10)
    stored = find_first_stage(name).open(built.write(tmp_path))
    assert len(stored) == 3000
    for before, after in zip(found, stored.nearest(queries, 10), strict=True):
        np.testing.assert_array_equal(after, before)
    truth = expected_rows(embeddings, queries, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, truth, strict=True)])
    assert hits >= share
    assert (np.diff(found.similarities) <= 1e-6).all()


def test_faiss_that_is_not_there_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"edje-jax\[faiss\]"):
        FaissFlat.build(unit(3))


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_nothing_is_near_where_there_is_nothing(name):
    if name.startswith("faiss"):
        pytest.importorskip("faiss")
    kind = find_first_stage(name)
    rows = unit(3) if kind.reads == "embeddings" else np.arange(24, dtype=np.uint8).reshape(3, 8)
    stage = kind.build(rows[:0])
    assert len(stage) == 0 and stage.nearest(rows[:2], 5).rows.shape == (2, 0)
    stage = kind.build(rows)
    assert stage.nearest(rows[:0], 2).rows.shape == (0, 2)


def test_an_unknown_name_is_told_with_those_that_there_are():
    with pytest.raises(ValueError, match="called 'fast'; there are exact, faiss-flat, faiss-hnsw"):
        find_first_stage("fast")


def test_the_command_line_lists_first_stages_without_their_libraries():
    import subprocess
    import sys

    code = "import sys, edje_jax.first_stage.registry as r; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jax", "faiss", "numpy"} & set(done.stdout.split())
