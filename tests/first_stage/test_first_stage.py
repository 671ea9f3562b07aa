"""Every first stage against NumPy, as it was built and as it was stored.

Covers first_stage/base.py, first_stage/blockwise.py, first_stage/exact.py, first_stage/faiss.py
and first_stage/registry.py.
"""

import numpy as np
import pytest

from edje_jax.first_stage import blockwise
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.faiss import FaissFlat
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def expected(embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ embeddings.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("rows, block", [(300, 1 << 16), (300, 100), (301, 64), (5, 2)])
def test_exact_is_what_sorting_gives(monkeypatch, rows, block):
    monkeypatch.setattr(blockwise, "BLOCK", block)
    embeddings, queries = unit(rows), unit(70, seed=1)
    stage = Exact(embeddings)
    for k in (1, 10, rows + 3):
        found = stage.nearest(queries, k)
        assert found.rows.shape == (70, min(k, rows))
        np.testing.assert_array_equal(found.rows, expected(embeddings, queries, k))
        picked = np.take_along_axis(queries @ embeddings.T, found.rows, axis=1)
        np.testing.assert_allclose(found.similarities, picked, atol=1e-6)


def test_equal_similarities_rank_by_row(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 4)
    same = np.tile(unit(1), (10, 1))
    np.testing.assert_array_equal(Exact(same).nearest(unit(1), 10).rows[0], np.arange(10))


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
    truth = expected(embeddings, queries, 10)
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
