"""Every engine of the first stage against NumPy."""

import numpy as np
import pytest

from edje_jax.first_stage import exact
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.faiss import Faiss
from edje_jax.first_stage.registry import ENGINES


def unit(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def expected(embeddings: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ embeddings.T), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("rows, block", [(300, 1 << 16), (300, 100), (301, 64), (5, 2)])
def test_exact_is_what_sorting_gives(monkeypatch, rows, block):
    monkeypatch.setattr(exact, "BLOCK", block)
    embeddings, queries = unit(rows), unit(70, seed=1)
    stage = Exact(embeddings)
    for k in (1, 10, rows + 3):
        found = stage.nearest(queries, k)
        assert found.rows.shape == (70, min(k, rows))
        np.testing.assert_array_equal(found.rows, expected(embeddings, queries, k))
        picked = np.take_along_axis(queries @ embeddings.T, found.rows, axis=1)
        np.testing.assert_allclose(found.similarities, picked, atol=1e-6)


def test_equal_similarities_rank_by_row(monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 4)
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
def test_faiss_finds_nearly_the_same(name, share):
    pytest.importorskip("faiss")
    embeddings, queries = unit(3000, 16), unit(40, 16, seed=1)
    found = ENGINES[name](embeddings).nearest(queries, 10)
    truth = expected(embeddings, queries, 10)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.rows, truth, strict=True)])
    assert hits >= share
    assert (np.diff(found.similarities) <= 1e-6).all()


def test_faiss_that_is_not_there_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match=r"edje-jax\[faiss\]"):
        Faiss(unit(3))
