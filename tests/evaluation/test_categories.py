"""Mean average precision by categories: FiCo-ITR's, with equal similarities by expectation."""

import itertools

import fico_itr
import numpy as np
import pytest

from edje_jax.evaluation.categories import (
    DEPTHS,
    category_metrics,
    chance,
    direction_metrics,
    expected_precisions,
)


def precision(relevant: np.ndarray, k: int | None) -> float:
    """Average precision at k of a ranking's right answers, by the definition."""
    head = relevant[:k]
    places = np.flatnonzero(head)
    return float(np.mean([head[: i + 1].mean() for i in places])) if len(places) else 0.0


def of_matrix(similarities: np.ndarray, owner: np.ndarray, labels: np.ndarray, **options) -> dict:
    """Metrics where [image, caption] similarities are given as they are."""
    n, t = similarities.shape

    def similarity(queries, items):
        # Numbers of images are 0 and up, of captions -1 and down.
        is_image = queries[0, 0] >= 0
        rows, columns = (queries, items) if is_image else (items, queries)
        found = similarities[rows[:, 0]][:, -1 - columns[:, 0]]
        return found if is_image else found.T

    vectors = np.arange(n)[:, None], -1 - np.arange(t)[:, None]
    return category_metrics(*vectors, owner, labels, similarity=similarity, **options)


def random_case(seed: int, even: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[image, caption] similarities that are all different, owners, and labels."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    counts = np.full(n, rng.integers(2, 6)) if even else rng.integers(1, 6, n)
    counts[0] += not even and counts.sum() == n  # A square matrix means something else there
    owner = np.repeat(np.arange(n), counts)
    similarities = rng.permutation(n * len(owner)).reshape(n, len(owner)).astype(np.float32)
    return similarities, owner, rng.random((n, int(rng.integers(1, 6)))) < 0.3


@pytest.mark.parametrize("seed", range(100))
def test_fico_itr_finds_the_same_without_ties(seed):
    similarities, owner, labels = random_case(seed, even=seed % 2 == 0)
    found = of_matrix(similarities, owner, labels)
    # A list: an array fails there.
    captions = "auto" if seed % 4 == 0 else owner.tolist()
    for name, k in DEPTHS.items():
        i2t, t2i = fico_itr.category_retrieval(
            similarities, labels, k=k, captions_per_image=captions
        )
        assert found["i2t"][name] == pytest.approx(100 * i2t, abs=1e-9)
        assert found["t2i"][name] == pytest.approx(100 * t2i, abs=1e-9)
    unlabelled = ~labels.any(axis=1)
    assert found["i2t"]["queries_without_labels"] == unlabelled.sum()
    assert found["t2i"]["queries_without_labels"] == unlabelled[owner].sum()
    assert found["t2i"]["queries"] == len(owner)


def test_every_order_of_a_tiny_case_by_brute_force(monkeypatch):
    depths = {"2": 2, "3": 3, "5": 5, "all": None}
    monkeypatch.setattr("edje_jax.evaluation.categories.DEPTHS", depths)
    rng = np.random.default_rng(0)
    values = -np.sort(-rng.integers(0, 3, (25, 6)), axis=1)
    relevant = rng.random((25, 6)) < 0.4
    begins = np.diff(values, axis=1, prepend=9) != 0
    found = expected_precisions(relevant, begins)
    for q in range(25):
        ranked = [
            [relevant[q, j] for j in sorted(order, key=lambda j: -values[q, j])]
            for order in itertools.permutations(range(6))
        ]
        expected = [np.mean([precision(np.array(r), k) for r in ranked]) for k in depths.values()]
        np.testing.assert_allclose(found[q], expected, atol=1e-12)
    assert (found[:, 0] != found[:, 3]).sum() > 10


def test_the_mean_over_random_orders_of_codes():
    rng = np.random.default_rng(1)
    images, texts = (np.sign(rng.normal(size=(n, 8))) for n in (150, 20))
    labels = rng.random((150, 4)) < 0.3
    owner, numbers = rng.integers(0, 150, 20), np.arange(150)
    found = direction_metrics(texts, images, owner, numbers, labels)
    draws: dict[str, list[float]] = {name: [] for name in DEPTHS}
    for _ in range(400):
        shuffled = rng.permutation(150)
        order = shuffled[np.argsort(-(texts @ images.T)[:, shuffled], axis=1, kind="stable")]
        relevant = (labels[owner][:, None] & labels[order]).any(axis=2)
        for name, k in DEPTHS.items():
            draws[name].append(100 * float(np.mean([precision(row, k) for row in relevant])))
    for name, values in draws.items():
        assert np.std(values) > 0
        error = np.std(values) / np.sqrt(len(values))
        assert found[name] == pytest.approx(np.mean(values), abs=4 * error)


def test_chance_is_the_mean_of_shuffled_rankings():
    rng = np.random.default_rng(2)
    right = np.array([0, 1, 7, 30])
    found = chance(right, 30)
    assert found[0] == 0 and found[3] == pytest.approx(1)
    assert found[1] == pytest.approx(np.mean(1 / np.arange(1, 31)))
    shuffled = [precision(rng.permutation(np.arange(30) < 7), None) for _ in range(4000)]
    assert found[2] == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / 4000**0.5)
    labels = np.ones((30, 1), bool)
    labels[10:] = False
    zeros = np.zeros((30, 2), np.float32)
    metrics = direction_metrics(zeros, zeros, np.arange(30), np.arange(30), labels)
    assert metrics["chance"] == pytest.approx(100 * chance(np.array([10]), 30)[0] / 3)
    assert metrics["mAP@N"] == pytest.approx(metrics["chance"])


@pytest.mark.parametrize("block", [1, 300, 1 << 22])
def test_reranked_items_stand_first(block, monkeypatch):
    monkeypatch.setattr("edje_jax.evaluation.similarities.BLOCK_SIMILARITIES", block)
    similarities, owner, labels = random_case(7, even=False)
    n, t = similarities.shape
    rng = np.random.default_rng(3)
    front = {
        "t2i": np.stack([rng.permutation(n)[:5] for _ in range(t)]),
        "i2t": np.stack([rng.permutation(t)[:5] for _ in range(n)]),
    }
    found = of_matrix(similarities, owner, labels, reranked=front)
    raised = {"t2i": similarities.T.copy(), "i2t": similarities.copy()}
    for key, values in raised.items():
        np.put_along_axis(values, front[key], 1e6 - np.arange(5), axis=1)
        # Another matrix for each direction, which need not agree.
        side = of_matrix(values if key == "i2t" else values.T, owner, labels)
        assert found[key] == pytest.approx(side[key], abs=1e-9)
    assert found["t2i"] != of_matrix(similarities, owner, labels)["t2i"]


def test_a_retrieval_reranks(make_case):
    gallery, result = make_case(images=30, k=8)
    labels = np.eye(30, dtype=bool)
    zeros = np.zeros((30, 2)), np.zeros((90, 2))
    front = {
        key: side.reranked(side.candidates)
        for key, side in (("t2i", result.t2i), ("i2t", result.i2t))
    }
    found = category_metrics(*zeros, gallery.caption_image, labels, reranked=front)
    # Every image has a label of its own, so a caption has one right answer: among the 8 that were
    # reranked, or, as all others tie, in any of the other 22 places.
    places = result.t2i.reranked_rank[result.t2i.hits.any(axis=1)]
    assert 0 < len(places) < 90
    precisions = np.sum(1 / places) + (90 - len(places)) * (1 / 9 + 1 / 10) / 22
    assert found["t2i"]["mAP@10"] == pytest.approx(100 * precisions / 90)


def test_an_image_without_captions_is_an_item_and_no_query():
    rng = np.random.default_rng(4)
    images, texts = rng.normal(size=(6, 4)), rng.normal(size=(4, 4))
    labels = rng.random((6, 2)) < 0.6
    owner = np.array([0, 0, 2, 5])
    found = category_metrics(images, texts, owner, labels)
    assert found["i2t"]["queries"] == 3
    assert found["t2i"]["queries"] == 4
    order = np.argsort(-(images @ texts.T), axis=1)
    expected = [
        precision((labels[owner[order[i]]] & labels[i]).any(axis=1), None) for i in (0, 2, 5)
    ]
    assert found["i2t"]["mAP@N"] == pytest.approx(100 * np.mean(expected))


def test_what_does_not_fit_is_refused():
    zeros, labels = np.zeros((3, 2)), np.ones((3, 1), bool)
    owner = np.arange(3)
    with pytest.raises(ValueError, match="labels of 2 images for a gallery of 3"):
        category_metrics(zeros, zeros, owner, labels[:2])
    for front in (np.zeros((2, 1), int), np.array([[0, 1], [1, 2], [2, 2]])):
        with pytest.raises(ValueError, match="give a row for each query, without repeating"):
            category_metrics(zeros, zeros, owner, labels, reranked={"t2i": front})
