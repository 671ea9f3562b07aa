import numpy as np
import pytest

from edje_jax.evaluation.measures import Measure, measure_ranks, recall_at

RECIPROCAL_RANK = Measure("MRR", lambda ranks: 100 / ranks)
MEDIAN_RANK = Measure("MedR", lambda ranks: ranks, "median", unit="rank", higher_is_better=False)


def test_recall_by_hand():
    ranks = np.array([1, 2, 5, 6, 11])
    assert measure_ranks(ranks) == {"R@1": 20.0, "R@5": 60.0, "R@10": 80.0}
    assert recall_at(11).of(ranks) == 100.0


def test_other_measures_by_hand():
    ranks = np.array([1, 2, 4, 0, 10])
    assert RECIPROCAL_RANK.of(ranks) == pytest.approx(100 * (1 + 1 / 2 + 1 / 4 + 1 / 10) / 4)
    assert MEDIAN_RANK.of(ranks) == 3.0
    assert MEDIAN_RANK.of(ranks[:3]) == 2.0
    assert (RECIPROCAL_RANK.label, MEDIAN_RANK.label) == ("MRR", "MedR (rank)")


def test_queries_without_a_right_answer_never_count():
    ranks = np.array([1, 3, 7])
    for measure in (recall_at(1), RECIPROCAL_RANK, MEDIAN_RANK):
        assert measure.of(np.array([0, 1, 0, 3, 7, 0])) == measure.of(ranks)


def test_nothing_to_count_is_an_error():
    with pytest.raises(ValueError, match="none of 2 queries"):
        measure_ranks(np.array([0, 0]))
    with pytest.raises(ValueError, match="R@0"):
        recall_at(0)
