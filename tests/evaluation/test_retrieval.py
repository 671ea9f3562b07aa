import dataclasses
import itertools

import numpy as np
import pytest

from edje_jax.evaluation import retrieval, similarities
from edje_jax.evaluation.retrieval import Gallery, base_ranking, rerank, top_k


def never(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
    return np.zeros(len(text_index), np.float32)


def corners(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Unit vectors of four halves or of one whole: products are exact, and many are equal."""
    halves = rng.choice([-0.5, 0.5], (rows, 4))
    axes = np.eye(4)[rng.integers(0, 4, rows)]
    return np.where(rng.random((rows, 1)) < 0.7, halves, axes).astype(np.float32)


def by_hand() -> tuple[Gallery, np.ndarray, np.ndarray]:
    """Three images on the axes; captions that lean towards this or that one."""
    gallery = Gallery.of(["a", "b", "c"], [["a0", "a1"], ["b0"], ["c0"]])
    texts = np.array([[0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0.6, 0.8], [0, 0, 1]], np.float32)
    return gallery, np.eye(3, dtype=np.float32), texts


def test_small_case_by_hand():
    gallery, images, texts = by_hand()
    logits = np.array([[0, 5, 9], [5, 0, 9], [9, 5, 0], [0, 1, 2]], np.float32)
    result = rerank(gallery, images, texts, lambda t, i: logits[t, i], k=2)

    assert result.t2i.candidates.tolist() == [[0, 1], [1, 0], [2, 1], [2, 0]]
    assert result.t2i.base_rank.tolist() == [1, 2, 2, 1]
    assert result.t2i.order.tolist() == [[1, 0], [1, 0], [1, 0], [0, 1]]
    assert result.t2i.reranked(result.t2i.candidates).tolist() == [[1, 0], [0, 1], [1, 2], [2, 0]]
    assert result.t2i.reranked_rank.tolist() == [2, 1, 1, 1]
    assert result.t2i.base_best.tolist() == gallery.caption_image.tolist()
    np.testing.assert_allclose(result.t2i.similarities[0], [0.8, 0.6])

    assert result.i2t.candidates.tolist() == [[0, 1], [1, 0], [3, 2]]
    # Image b: its caption b0 ties with a0 at 0.6 and stands after it, past k.
    assert result.i2t.base_rank.tolist() == [1, 3, 1]
    assert result.i2t.scores.tolist() == [[0, 5], [0, 5], [2, 0]]
    assert result.i2t.reranked_rank.tolist() == [1, 3, 1]

    metrics = result.metrics()
    assert metrics["k"] == 2
    assert metrics["t2i"]["base"]["R@1"] == 50.0
    assert metrics["t2i"]["reranked"]["R@1"] == 75.0
    assert metrics["t2i"]["ceiling"] == 100.0
    assert metrics["i2t"]["base"] == {"R@1": pytest.approx(200 / 3), "R@5": 100.0, "R@10": 100.0}
    assert metrics["i2t"]["ceiling"] == pytest.approx(200 / 3)


def test_any_caption_of_the_image_is_a_hit():
    gallery, images, texts = by_hand()
    wants_second = np.array([[0, 0, 0], [9, 0, 0], [0, 0, 0], [0, 0, 0]], np.float32)
    result = rerank(gallery, images, texts, lambda t, i: wants_second[t, i], k=3)
    assert result.i2t.reranked(result.i2t.candidates)[0, :2].tolist() == [1, 0]
    assert result.i2t.reranked_rank[0] == 1


@pytest.mark.parametrize("k", [1, 3, 7, 60])
@pytest.mark.parametrize("block", [1, 64, 1 << 22])
def test_against_brute_force_with_ties(k, block, monkeypatch):
    monkeypatch.setattr(similarities, "BLOCK_SIMILARITIES", block)
    rng = np.random.default_rng(k)
    count = 25
    gallery = Gallery.of(
        [str(i) for i in range(count)], [["x"] * int(n) for n in rng.integers(1, 4, count)]
    )
    images, texts = corners(rng, count), corners(rng, len(gallery.captions))
    # Few different logits, so that reranking ties as well.
    logits = rng.integers(0, 3, (len(texts), count)).astype(np.float32)
    result = rerank(gallery, images, texts, lambda t, i: logits[t, i], k)

    sides = (
        (result.t2i, texts @ images.T, logits, gallery.caption_image, np.arange(count)),
        (result.i2t, images @ texts.T, logits.T, np.arange(count), gallery.caption_image),
    )
    for side, near, scores, query_image, item_image in sides:
        depth = min(k, near.shape[1])
        assert side.candidates.shape == (len(near), depth)
        for q in range(len(near)):
            base = sorted(range(near.shape[1]), key=lambda j: (-near[q, j], j))
            head = sorted(base[:depth], key=lambda j: (-scores[q, j], base.index(j)))
            final = head + base[depth:]
            right = [j for j in base if item_image[j] == query_image[q]]
            assert side.candidates[q].tolist() == base[:depth]
            assert side.candidates[q, side.order[q]].tolist() == head
            assert side.base_best[q] == right[0]
            assert side.base_rank[q] == 1 + base.index(right[0])
            assert side.reranked_rank[q] == 1 + min(final.index(j) for j in right)
        assert side.metrics()["ceiling"] == pytest.approx(100 * np.mean(side.base_rank <= depth))


def test_top_k_is_a_stable_sort():
    values = np.random.default_rng(0).integers(0, 4, (50, 12)).astype(np.float32)
    for k in (1, 5, 12):
        expected = np.argsort(-values, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_k(values, k), expected)


def test_recall_at_the_depth_and_past_it_does_not_change(make_case):
    for k, same in ((10, ["R@10"]), (5, ["R@5", "R@10"])):
        for direction in ("t2i", "i2t"):
            result = make_case(k=k).retrieval.metrics()[direction]
            assert result["base"]["R@1"] != result["reranked"]["R@1"]
            assert [result["base"][at] for at in same] == [result["reranked"][at] for at in same]
            assert result["ceiling"] == result["base"][f"R@{k}"]
            assert result["reranked"]["R@1"] <= result["ceiling"]


def test_base_recall_is_exact_past_the_depth(make_case):
    shallow, deep = make_case(k=2).retrieval.metrics(), make_case(k=40).retrieval.metrics()
    for direction in ("t2i", "i2t"):
        assert shallow[direction]["base"] == deep[direction]["base"]
        assert shallow[direction]["ceiling"] < shallow[direction]["base"]["R@10"]


def test_each_pair_is_scored_once():
    gallery, images, texts = by_hand()
    calls = []

    def score(text_index, image_index):
        assert text_index.dtype == image_index.dtype == np.int32
        calls.append(list(zip(image_index.tolist(), text_index.tolist(), strict=True)))
        return np.zeros(len(text_index), np.float32)

    result = rerank(gallery, images, texts, score, k=2)
    wanted = {(i, t) for t, row in enumerate(result.t2i.candidates.tolist()) for i in row}
    wanted |= {(i, t) for i, row in enumerate(result.i2t.candidates.tolist()) for t in row}
    assert calls == [sorted(wanted)]
    assert len(wanted) < result.t2i.candidates.size + result.i2t.candidates.size


def test_distractors_ask_for_no_pairs():
    rng = np.random.default_rng(0)
    gallery = Gallery.of([f"{i}" for i in range(50)], [["x", "y"]] * 10 + [[]] * 40)
    images, texts = corners(rng, 50), corners(rng, 20)
    pairs = set()

    def score(text_index, image_index):
        pairs.update(zip(text_index.tolist(), image_index.tolist(), strict=True))
        return 1.0 + text_index

    result = rerank(gallery, images, texts, score, k=5)
    from_texts = {(t, i) for t, row in enumerate(result.t2i.candidates.tolist()) for i in row}
    from_images = {(t, i) for i in range(10) for t in result.i2t.candidates[i].tolist()}
    assert pairs == from_texts | from_images
    assert (result.i2t.scores[:10] == 1 + result.i2t.candidates[:10]).all()
    assert not result.i2t.scores[10:].any()


def test_similarity_weight():
    gallery, images, texts = by_hand()
    against = -(texts @ images.T)

    def score(text_index, image_index):
        return against[text_index, image_index]

    plain = rerank(gallery, images, texts, score, k=2)
    assert plain.t2i.order[0].tolist() == [1, 0]
    weighted = rerank(gallery, images, texts, score, k=2, similarity_weight=1.5)
    assert weighted.t2i.order[0].tolist() == [0, 1]
    np.testing.assert_allclose(weighted.t2i.combined, 0.5 * plain.t2i.similarities, rtol=1e-6)
    np.testing.assert_array_equal(weighted.t2i.scores, plain.t2i.scores)


def test_depth_beyond_the_gallery_is_clipped():
    gallery, images, texts = by_hand()
    result = rerank(gallery, images, texts, never, k=1000)
    assert result.t2i.candidates.shape == (4, 3)
    assert result.i2t.candidates.shape == (3, 4)
    assert result.metrics()["t2i"]["ceiling"] == result.metrics()["i2t"]["ceiling"] == 100.0


def test_level_scores_keep_the_base_order(make_case):
    gallery, images, texts = by_hand()
    result = rerank(gallery, images, texts, never, k=3)
    for side in (result.t2i, result.i2t):
        assert (side.order == np.arange(3)).all()
        assert side.base_rank.tolist() == side.reranked_rank.tolist()


def test_an_image_without_captions_is_a_candidate_and_no_query():
    gallery = Gallery.of(["a", "distractor", "c"], [["a0"], [], ["c0"]])
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0.6, 0.8, 0], [0, 0, 1]], np.float32)
    result = rerank(gallery, images, texts, never, k=2)
    assert result.t2i.base_rank.tolist() == [2, 1]
    assert result.i2t.base_rank.tolist() == [1, 0, 1]
    assert result.i2t.reranked_rank.tolist() == [1, 0, 1]
    assert result.i2t.answered.tolist() == [True, False, True]
    assert result.metrics()["i2t"]["base"]["R@1"] == 100.0
    assert result.metrics()["i2t"]["ceiling"] == 100.0


def test_the_base_ranking_holds_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(similarities, "BLOCK_SIMILARITIES", 100)
    seen = []
    real = retrieval.top_k
    monkeypatch.setattr(retrieval, "top_k", lambda near, k: seen.append(near.size) or real(near, k))
    rng = np.random.default_rng(0)
    base_ranking(corners(rng, 35), corners(rng, 30), np.arange(35) % 30, np.arange(30), 5)
    assert max(seen) <= 100
    assert sum(seen) == 35 * 30


def test_text_ids_number_the_captions_of_an_image():
    gallery = Gallery(["a", "b"], ["x", "y", "z"], np.array([1, 0, 1]))
    assert gallery.text_ids == ["b#0", "a#0", "b#1"]


def test_gallery_refuses_what_cannot_be_evaluated():
    for images, captions, owner, message in (
        ([], [], [], "0 images and 0 captions"),
        (["a"], [], [], "1 images and 0 captions"),
        (["a"], ["x", "y"], [0], r"shape \(1,\) for 2 captions"),
        (["a"], ["x"], [1], "images 0 to 0"),
        (["a", "a"], ["x", "y"], [0, 1], "'a' stands twice"),
        (["a", ""], ["x", "y"], [0, 1], "image 1 has an empty id"),
    ):
        with pytest.raises(ValueError, match=message):
            Gallery(images, captions, np.array(owner, np.int32))


def test_rerank_refuses_bad_numbers():
    gallery, images, texts = by_hand()

    def nan_for_one(text_index, image_index):
        return np.where((text_index == 2) & (image_index == 1), np.nan, 0.0)

    broken = texts.copy()
    broken[1, 0] = np.nan
    for arguments, message in (
        ((images, texts, never, 0), "k = 0"),
        ((images[:2], texts, never, 2), r"image_embeddings has shape \(2, 3\)"),
        ((images, 2 * texts, never, 2), "row 0 has length 2;"),
        ((images, broken, never, 2), "row 1 has length nan"),
        ((np.eye(3, 5), texts, never, 2), "5 dimensions and captions in 3"),
        ((images, texts, lambda t, i: np.zeros(3), 2), r"gave shape \(3,\)"),
        ((images, texts, nan_for_one, 2), "nan for caption 2 and image 1"),
    ):
        with pytest.raises(ValueError, match=message):
            rerank(gallery, *arguments)


def test_same_numbers_in_the_same_result_out(make_case):
    first, second = (make_case(seed=3).retrieval for _ in range(2))
    for side, name in itertools.product(("t2i", "i2t"), ("candidates", "combined", "order")):
        a, b = (getattr(getattr(r, side), name) for r in (first, second))
        np.testing.assert_array_equal(a, b)
    assert dataclasses.is_dataclass(first)
