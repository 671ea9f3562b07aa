"""Recalls by expectation over the orders of equal similarities.

Covers evaluation/similarities.py.
"""

import itertools

import numpy as np
import pytest

from edje_jax.evaluation.intervals import difference_intervals
from edje_jax.evaluation.measures import recall_at
from edje_jax.evaluation.ranks import best_positive
from edje_jax.evaluation.retrieval import base_ranking
from edje_jax.evaluation.tied_ranks import best_ties, chance_of_hit, first_stage_recalls

DEPTHS = (1, 2, 3, 7, 16, 17, 40)


def tied_case(rng: np.random.Generator, q: int, g: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities with few values, and right answers, of which some queries have none."""
    return rng.integers(-2, 3, (q, g)) / 2, rng.random((q, g)) < 0.2


def of_blocks(similarities: np.ndarray, **options) -> dict:
    """Arguments of `first_stage_recalls` that make a matrix the similarities."""
    q, g = similarities.shape
    numbers = np.arange(q)[:, None], np.arange(g)[:, None]
    return {
        "queries": numbers[0], "items": numbers[1],
        "similarity": lambda a, b: similarities[a[:, 0]][:, b[:, 0]], **options,
    }  # fmt: skip


def test_by_hand():
    # Two nearer items; then six that tie, two of them right; then one more right answer.
    similarities = np.array([[9, 9, 5, 5, 5, 5, 5, 5, 1]], float)
    positive = np.array([[0, 0, 1, 0, 0, 1, 0, 0, 1]], bool)
    ties = best_ties(similarities, positive)
    assert [int(x[0]) for x in ties] == [2, 6, 2]
    expected = [0, 0, 1 / 3, 1 - 6 / 15, 1 - 1 / 15, 1, 1, 1]
    np.testing.assert_allclose(chance_of_hit(*ties, (1, 2, 3, 4, 6, 7, 8, 99))[0], expected)
    none = best_ties(similarities, np.zeros_like(positive))
    assert not chance_of_hit(*none, DEPTHS).any()


@pytest.mark.parametrize("seed", range(3))
def test_every_order_of_a_tiny_case_by_brute_force(seed):
    similarities, positive = tied_case(np.random.default_rng(seed), 8, 6)
    found = chance_of_hit(*best_ties(similarities, positive), range(1, 8))
    for q in range(8):
        ranks = []
        for order in itertools.permutations(range(6)):
            ranked = sorted(order, key=lambda j: -similarities[q, j])
            ranks.append(next((i for i, j in enumerate(ranked, 1) if positive[q, j]), 99))
        expected = [np.mean([rank <= k for rank in ranks]) for k in range(1, 8)]
        np.testing.assert_allclose(found[q], expected, atol=1e-12)


def test_the_mean_over_random_orders():
    rng = np.random.default_rng(0)
    similarities, positive = tied_case(rng, 50, 40)
    found = chance_of_hit(*best_ties(similarities, positive), DEPTHS)
    hits, draws = np.zeros(found.shape), 2000
    for _ in range(draws):
        order = rng.permutation(40)
        rank = best_positive(similarities[:, order], positive[:, order])[1]
        hits += (rank[:, None] <= DEPTHS) & (rank[:, None] > 0)
    error = np.sqrt(found * (1 - found) / draws)
    assert (np.abs(hits / draws - found) <= 4.5 * error + 1e-12).all()
    assert (error > 0).sum() > 100


def test_without_ties_it_is_the_recall_at_k(monkeypatch):
    monkeypatch.setattr("edje_jax.evaluation.similarities.BLOCK_SIMILARITIES", 500)
    rng = np.random.default_rng(1)
    queries, items = (rng.normal(size=(n, 8)).astype(np.float32) for n in (90, 60))
    query_image, item_image = rng.integers(0, 40, 90), rng.integers(0, 40, 60)
    found = first_stage_recalls(queries, items, query_image, item_image, (1, 5, 10, 50, 200))
    rank = base_ranking(queries, items, query_image, item_image, 1).rank
    assert found.recalls == {f"R@{k}": recall_at(k).of(rank) for k in (1, 5, 10, 50, 200)}
    np.testing.assert_array_equal(found.answered, rank > 0)
    assert not found.answered.all()
    assert not found.hits[~found.answered].any()
    np.testing.assert_array_equal(found.hits[:, 1] == 1, (rank > 0) & (rank <= 5))


def test_one_similarity_for_all_is_chance():
    queries, items = np.zeros((5, 2), np.float32), np.zeros((40, 2), np.float32)
    found = first_stage_recalls(queries, items, np.arange(5), np.arange(40), (1, 10, 50))
    assert found.recalls == pytest.approx({"R@1": 2.5, "R@10": 25, "R@50": 100})
    five_each = first_stage_recalls(queries, items, np.arange(5), np.arange(40) // 5, (1, 36))
    assert five_each.recalls == pytest.approx({"R@1": 12.5, "R@36": 100})


def test_a_large_tie_keeps_its_precision():
    ties = np.array([[7]]), np.array([[1_000_000]]), np.array([[3]])
    found = chance_of_hit(*(x[0] for x in ties), (8, 107))[0]
    assert found[0] == pytest.approx(3e-6, rel=1e-9)
    assert found[1] == pytest.approx(3e-4, rel=1e-3)


def test_any_similarity_is_asked_block_by_block(monkeypatch):
    monkeypatch.setattr("edje_jax.evaluation.similarities.BLOCK_SIMILARITIES", 100)
    similarities, _ = tied_case(np.random.default_rng(3), 35, 30)
    asked = []
    given = of_blocks(similarities)

    def similarity(queries, items):
        asked.append((len(queries), len(items)))
        return given["similarity"](queries, items)

    owners = np.arange(35) % 30, np.arange(30)
    found = first_stage_recalls(given["queries"], given["items"], *owners, similarity=similarity)
    assert max(q * g for q, g in asked) <= 100 and sum(q for q, _ in asked) == 35
    whole = chance_of_hit(*best_ties(similarities, owners[0][:, None] == owners[1]), found.depths)
    np.testing.assert_array_equal(found.hits, whole)


def test_intervals_without_ties_are_those_of_ranks():
    rng = np.random.default_rng(2)
    image = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    before, after = (rng.normal(size=(len(image), 50)) for _ in range(2))
    owners = {"query_image": image, "item_image": np.arange(50)}
    a, b = (
        first_stage_recalls(**of_blocks(x, **owners), depths=(1, 5, 10)) for x in (before, after)
    )
    right = image[:, None] == np.arange(50)
    ranks = [best_positive(x, right)[1] for x in (before, after)]
    assert b.gain_intervals(a, image, seed=3) == difference_intervals(*ranks, image, seed=3)
    assert b.gain_intervals(a, image, seed=3) != b.gain_intervals(a, image, seed=4)
    for name, (low, high) in b.intervals(image).items():
        assert low < b.recalls[name] < high
        gain = b.gain_intervals(a, image)[name]
        assert gain[0] < b.recalls[name] - a.recalls[name] < gain[1]
    assert set(b.gain_intervals(b, image).values()) == {(0.0, 0.0)}


def test_the_interval_is_about_what_the_normal_law_gives():
    rng = np.random.default_rng(4)
    similarities = rng.integers(0, 3, (1500, 20)).astype(float)
    owners = {"query_image": np.arange(1500) % 20, "item_image": np.arange(20)}
    found = first_stage_recalls(**of_blocks(similarities, **owners), depths=(5,))
    low, high = found.intervals(np.arange(1500))["R@5"]
    hits = 100 * found.hits[:, 0]
    error = 1.96 * hits.std() / np.sqrt(len(hits))
    assert low == pytest.approx(hits.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(hits.mean() + error, abs=0.1 * error)


def test_what_cannot_be_counted_or_compared_is_refused():
    similarities = np.zeros((3, 4))
    some = {"query_image": np.array([0, 1, 9]), "item_image": np.arange(4)}
    one = first_stage_recalls(**of_blocks(similarities, **some))
    image = some["query_image"]
    with pytest.raises(ValueError, match="R@0 does not exist"):
        first_stage_recalls(**of_blocks(similarities, **some), depths=(5, 0))
    other = first_stage_recalls(**of_blocks(similarities, **some), depths=(1, 5))
    with pytest.raises(ValueError, match="use one list"):
        one.gain_intervals(other, image)
    all_count = first_stage_recalls(**of_blocks(similarities, **some | {"query_image": image % 4}))
    with pytest.raises(ValueError, match="one of the two first stages only"):
        one.gain_intervals(all_count, image)
    none = first_stage_recalls(**of_blocks(similarities, **some | {"query_image": image + 9}))
    with pytest.raises(ValueError, match="none of 3 queries has a right answer"):
        _ = none.recalls
