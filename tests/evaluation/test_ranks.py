import numpy as np
import pytest

from edje_jax.evaluation.ranks import best_positive, candidate_ceiling


def test_ceiling_counts_queries_with_any_hit():
    hits = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    assert candidate_ceiling(hits) == 75.0
    assert candidate_ceiling(hits[:3]) == pytest.approx(200 / 3)


def test_best_positive_by_hand():
    similarities = np.array([[0.9, 0.5, 0.7, 0.5], [0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]])
    positive = np.array([[0, 1, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]], bool)
    column, rank = best_positive(similarities, positive)
    # Any hit: the better of two right answers; ties rank by column; no answer is rank 0.
    assert column.tolist() == [1, 2, -1]
    assert rank.tolist() == [3, 3, 0]


@pytest.mark.parametrize("seed", range(5))
def test_best_positive_against_a_stable_sort_with_many_ties(seed):
    rng = np.random.default_rng(seed)
    similarities = rng.integers(-2, 3, (30, 17)) / 4
    positive = rng.random((30, 17)) < 0.15
    column, rank = best_positive(similarities, positive)
    for q in range(30):
        order = sorted(range(17), key=lambda j: (-similarities[q, j], j))
        hits = [j for j in order if positive[q, j]]
        assert column[q] == (hits[0] if hits else -1)
        assert rank[q] == (order.index(hits[0]) + 1 if hits else 0)
