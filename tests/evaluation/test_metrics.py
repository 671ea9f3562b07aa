import numpy as np
import pytest

from edje_jax.evaluation.metrics import best_positive, candidate_ceiling, recall_at_k, recalls


def test_recall_by_hand():
    ranks = np.array([1, 2, 5, 6, 11])
    assert recalls(ranks) == {"R@1": 20.0, "R@5": 60.0, "R@10": 80.0}
    assert recall_at_k(ranks, 11) == 100.0


def test_rows_without_a_rank_or_not_valid_never_count():
    ranks = np.array([1, 3, 0, 1, 7])
    valid = np.array([True, True, True, False, True])
    alone = np.array([1, 3, 7])
    assert recalls(ranks, valid) == recalls(alone)
    # What padding holds makes no difference, be it a hit or a miss.
    for filler in (0, 1, 99):
        assert recalls(np.append(alone, filler), np.array([1, 1, 1, 0], bool)) == recalls(alone)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="none of 2 queries"):
        recall_at_k(np.array([0, 0]), 1)
    with pytest.raises(ValueError, match="R@0"):
        recall_at_k(np.array([1]), 0)


def test_ceiling_counts_queries_with_any_hit():
    hits = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    assert candidate_ceiling(hits) == 75.0
    assert candidate_ceiling(hits, np.array([True, True, True, False])) == pytest.approx(200 / 3)


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


def test_padded_columns_stand_in_nobodys_way():
    rng = np.random.default_rng(0)
    similarities = rng.normal(size=(8, 6))
    positive = np.eye(8, 6, dtype=bool)
    valid = np.array([True, False, True, True, False, True])
    column, rank = best_positive(similarities, positive, valid)
    kept_column, kept_rank = best_positive(similarities[:, valid], positive[:, valid])
    assert rank.tolist() == kept_rank.tolist()
    assert rank[1] == rank[4] == 0
    back = np.flatnonzero(valid)
    assert [back[c] if c >= 0 else -1 for c in kept_column] == column.tolist()
