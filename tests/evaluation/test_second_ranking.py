"""Candidates that a second model reranks, against sorting them by hand."""

import numpy as np
import pytest

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.evaluation.second_ranking import (
    WEIGHTS,
    SecondDirection,
    SecondRanking,
    check_calibrated,
    rank_again,
)

OTHER = Calibration(similarity_weight=9.0, temperature=2.0, bias=-1.0)


def second_scores(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
    """Scores of pairs that depend on the pair alone."""
    return np.sin(7.0 * text_index + 3.0 * image_index).astype(np.float32) * 50 - 40


def by_hand(case, key: str, k: int, weight: float) -> list[int]:
    """Rank of every query's best right answer, query by query."""
    side, gallery, ranks = getattr(case.retrieval, key), case.gallery, []
    for query in range(len(side.candidates)):
        items = side.candidates[query, side.order[query]][:k]
        first = side.combined[query, side.order[query]][:k] / 2 - 1
        pairs = (np.full(len(items), query), items)
        second = second_scores(*(pairs if key == "t2i" else pairs[::-1]))
        owner = gallery.caption_image
        own = owner[query] == items if key == "t2i" else owner[items] == query
        order = sorted(
            range(len(items)), key=lambda i: -((1 - weight) * first + weight * second)[i]
        )
        right = [place for place, i in enumerate(order, start=1) if own[i]]
        ranks.append(right[0] if right else int(side.reranked_rank[query]))
    return ranks


@pytest.mark.parametrize("k", [1, 4, 10, 99])
def test_ranks_are_those_of_the_pooled_logits(make_case, k):
    case = make_case(k=10)
    found = rank_again(case.gallery, case.retrieval, OTHER, second_scores, k)
    assert found.k == min(k, 10)
    for key in ("t2i", "i2t"):
        side = getattr(found, key)
        for weight in (0.0, 0.3, 1.0):
            assert side.ranks(weight).tolist() == by_hand(case, key, k, weight)
        np.testing.assert_array_equal(side.ranks(0.0), getattr(case.retrieval, key).reranked_rank)


def test_equal_candidates_keep_the_first_order(make_case):
    case = make_case(k=10)

    def flat(text_index, image_index):
        return np.zeros(len(text_index), np.float32)

    found = rank_again(case.gallery, case.retrieval, UNTUNED, flat, 5)
    np.testing.assert_array_equal(found.t2i.ranks(1.0), case.retrieval.t2i.reranked_rank)


def test_each_pair_is_scored_once_and_only_the_best(make_case):
    case, asked = make_case(k=10), []

    def score(text_index, image_index):
        asked.append(len(text_index))
        assert len({*zip(text_index.tolist(), image_index.tolist(), strict=True)}) == len(
            text_index
        )
        return second_scores(text_index, image_index)

    rank_again(case.gallery, case.retrieval, UNTUNED, score, 3)
    assert len(asked) == 1 and asked[0] <= 3 * (40 + 120)
    with pytest.raises(ValueError, match="k = 0"):
        rank_again(case.gallery, case.retrieval, UNTUNED, score, 0)


def test_images_without_captions_do_not_count():
    gallery = Gallery(["a", "b", "c"], ["one", "two"], np.array([0, 1]))
    embeddings = np.eye(3, dtype=np.float32)
    first = rerank(gallery, embeddings, embeddings[:2], second_scores, 3)
    found = rank_again(gallery, first, UNTUNED, second_scores, 2)
    assert found.i2t.ranks(0.5)[2] == 0
    assert found.metrics(0.5)["i2t"]["R@10"] == 100.0


def ranking(first, second, hits) -> SecondRanking:
    side = SecondDirection(np.array(first), np.array(second), np.array(hits), np.ones(2, np.int32))
    return SecondRanking(side, side, 2, {"t2i": np.arange(2), "i2t": np.arange(2)})


def test_the_weight_is_the_middle_of_the_best():
    # The first query is right from 0.25 on, the second up to 0.75.
    right = [[False, True], [True, False]]
    found = ranking([[1.0, 0.0], [3.0, 0.0]], [[-3.0, 0.5], [0.0, 1.0]], right)
    best = found.best_weight()
    assert best in WEIGHTS and found.metrics(best)["t2i"]["R@1"] == 100.0
    good = [w for w in WEIGHTS if found.metrics(w)["t2i"]["R@1"] == 100.0]
    assert 0 not in good and 1 not in good and best == good[len(good) // 2]


def test_metrics_tell_the_ceiling_and_the_gain():
    right = [[False, True], [True, False]]
    metrics = ranking([[1.0, 0.0], [3.0, 0.0]], [[-3.0, 0.5], [0.0, 1.0]], right).metrics(1.0)
    assert metrics["k"] == 2 and metrics["weight"] == 1.0
    assert metrics["t2i"]["R@1"] == 50.0 and metrics["t2i"]["ceiling"] == 100.0
    low, high = metrics["t2i"]["interval"]["R@1"]
    assert low <= -50.0 <= high


def test_only_a_weight_between_uncalibrated_models_is_warned_of(caplog):
    tuned = Calibration(fitted={"data": "shapes:val"})
    assert check_calibrated(tuned, tuned, 0.5)
    assert not check_calibrated(UNTUNED, tuned, 1.0) and not check_calibrated(tuned, UNTUNED, 0.0)
    assert not caplog.records
    assert not check_calibrated(tuned, UNTUNED, 0.25)
    assert "weight 0.25: the scores of the second model are not calibrated" in caplog.text
