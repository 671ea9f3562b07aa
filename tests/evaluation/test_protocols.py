import numpy as np
import pytest
from PIL import Image

from edje_jax.data.sources.pooled import Pooled
from edje_jax.evaluation import protocols
from edje_jax.evaluation.retrieval import Gallery, base_ranking, rerank
from edje_jax.scenes.shapes import Shapes

FIELDS = ("candidates", "scores", "combined", "order", "hits", "base_rank", "reranked_rank")


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def world(images: int = 23, seed: int = 0):
    """A gallery with ragged captions, its embeddings, and logits with many ties."""
    rng = np.random.default_rng(seed)
    captions = [[f"{j} of {i}" for j in range(rng.integers(1, 4))] for i in range(images)]
    gallery = Gallery.of([f"p{i}" for i in range(images)], captions)
    embeddings = unit(rng.normal(size=(images, 4)))
    texts = unit(embeddings[gallery.caption_image] + rng.normal(size=(len(gallery.captions), 4)))
    logits = rng.integers(0, 4, (len(texts), images)).astype(np.float32)
    return gallery, embeddings, texts, logits


@pytest.mark.parametrize("weight", [0.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_a_smaller_depth_is_what_reranking_it_gives(k, weight):
    gallery, images, texts, logits = world()

    def score(text_index, image_index):
        return logits[text_index, image_index]

    deep = rerank(gallery, images, texts, score, 9)
    again, direct = deep.at(k, weight), rerank(gallery, images, texts, score, k, weight)
    assert (again.k, again.similarity_weight) == (k, weight)
    for key in ("t2i", "i2t"):
        for name in FIELDS:
            a, b = (getattr(getattr(result, key), name) for result in (again, direct))
            np.testing.assert_array_equal(a, b)


def test_a_depth_that_was_not_scored_is_refused():
    gallery, images, texts, logits = world()
    result = rerank(gallery, images, texts, lambda t, i: logits[t, i], 5)
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k = {k}; the first 5"):
            result.at(k)


def test_sweeps_score_nothing_again_and_tell_the_cost():
    gallery, images, texts, logits = world()
    timed = protocols.Timed(lambda t, i: logits[t, i])
    deep = rerank(gallery, images, texts, timed, 9)
    scored = timed.pairs
    assert scored > 0 and timed.seconds > 0
    sweep = protocols.k_sweep(deep, (1, 4, 9), pairs_per_second=500.0)
    weights = protocols.weight_sweep(deep, (0.0, 3.0))
    assert timed.pairs == scored
    assert [at["k"] for at in sweep["at"]] == [1, 4, 9]
    assert [at["ms_per_query"] for at in sweep["at"]] == [2.0, 8.0, 18.0]
    # No more can be scored than there are.
    whole = rerank(gallery, images, texts, lambda t, i: logits[t, i], 1000)
    most = len(gallery.captions)
    assert protocols.k_sweep(whole, (1000,), 500.0)["at"][0]["ms_per_query"] == 2.0 * most
    # One candidate cannot be reordered, and the ceiling rises with the depth.
    assert sweep["at"][0]["t2i"]["base"] == sweep["at"][0]["t2i"]["reranked"]
    ceilings = [at["t2i"]["ceiling"] for at in sweep["at"]]
    assert ceilings == sorted(ceilings) and ceilings[0] < ceilings[-1]
    assert sweep["at"][2]["i2t"] == weights[0]["i2t"] == deep.i2t.metrics()
    assert weights[1]["t2i"] != weights[0]["t2i"]


@pytest.mark.parametrize("queries", [7, 1000])
def test_some_queries_are_ranked_as_all_are(queries):
    gallery, images, texts, logits = world()
    asked_for: list[tuple[int, int]] = []

    def score(text_index, image_index):
        asked_for.extend(zip(text_index.tolist(), image_index.tolist(), strict=True))
        return logits[text_index, image_index]

    some, owner, asked = protocols.rerank_some(gallery, images, texts, score, 5, queries)
    if queries == 7:
        assert len(asked_for) == len(set(asked_for)) <= 7 * 5 * 2
    whole = rerank(gallery, images, texts, lambda t, i: logits[t, i], 5)
    captions = np.linspace(0, len(texts) - 1, min(queries, len(texts))).astype(int)
    np.testing.assert_array_equal(owner, gallery.caption_image[captions])
    for key, rows in (("t2i", captions), ("i2t", asked)):
        for name in FIELDS:
            ours, all_of_them = (getattr(getattr(one, key), name) for one in (some, whole))
            np.testing.assert_array_equal(ours, all_of_them[rows])


def test_some_queries_take_the_candidates_of_another_first_stage():
    gallery, images, texts, logits = world()
    owner, own = gallery.caption_image, np.arange(len(images), dtype=np.int32)
    # A first stage that ranks by other embeddings.
    shifted = images[:, ::-1]
    base = {
        "t2i": base_ranking(texts, shifted, owner, own, 5),
        "i2t": base_ranking(shifted, texts, own, owner, 5),
    }

    def score(text_index, image_index):
        return logits[text_index, image_index]

    some, _, asked = protocols.rerank_some(gallery, images, texts, score, 5, 7, base)
    whole = rerank(gallery, images, texts, score, 5, base=base)
    captions = np.linspace(0, len(texts) - 1, 7).astype(int)
    for key, rows in (("t2i", captions), ("i2t", asked)):
        for name in FIELDS:
            ours, all_of_them = (getattr(getattr(one, key), name) for one in (some, whole))
            np.testing.assert_array_equal(ours, all_of_them[rows])


def test_a_pair_is_scored_once():
    rng, computed = np.random.default_rng(0), []

    def score(text_index, image_index):
        computed.extend(zip(image_index.tolist(), text_index.tolist(), strict=True))
        return (1000 * text_index + image_index).astype(np.float32)

    remembering = protocols.Remembering(score)
    for _ in range(5):
        text_index, image_index = rng.integers(0, 20, (2, 100), np.int32)
        start = len(computed)
        got = remembering(text_index, image_index)
        np.testing.assert_array_equal(got, 1000 * text_index + image_index)
        assert computed[start:] == sorted(computed[start:])
    assert len(computed) == len(set(computed)) > 150
    before = len(computed)
    remembering(text_index, image_index)
    assert len(computed) == before


def test_a_fold_is_its_own_gallery():
    gallery, images, texts, logits = world(images=23)
    asked = []

    def score(text_index, image_index):
        asked.append((text_index, image_index))
        return logits[text_index, image_index]

    results = protocols.rerank_folds(gallery, images, texts, score, 5, 4)
    summary = protocols.folds_summary(results)
    assert summary["pictures"] == [6, 6, 6, 5] and summary["count"] == 4 and summary["k"] == 5
    start = 0
    for size, result, (text_index, image_index) in zip(
        summary["pictures"], results, asked, strict=True
    ):
        rows = np.arange(start, start + size)
        own = np.flatnonzero(np.isin(gallery.caption_image, rows))
        names = [gallery.image_ids[i] for i in rows]
        captions = [
            [gallery.captions[t] for t in own if gallery.caption_image[t] == i] for i in rows
        ]
        alone = rerank(
            Gallery.of(names, captions),
            images[rows],
            texts[own],
            lambda t, i, own=own, rows=rows: logits[own[t], rows[i]],
            5,
        )
        assert result.metrics() == alone.metrics()
        assert np.isin(text_index, own).all() and np.isin(image_index, rows).all()
        start += size
    each = [result.metrics()["i2t"]["reranked"]["R@1"] for result in results]
    assert summary["i2t"]["reranked"]["R@1"] == pytest.approx(np.mean(each))
    assert len(set(each)) > 1


def test_too_many_folds_are_refused():
    gallery, images, texts, logits = world(images=3)
    for count in (1, 4):
        with pytest.raises(ValueError, match="give 2 to 3"):
            protocols.rerank_folds(gallery, images, texts, lambda t, i: logits[t, i], 2, count)


def test_a_pool_brings_distractors_and_no_question():
    source, pool = Few("ab"), Few("cbac", captions=3)
    joined = Pooled(source, pool)
    assert [joined.image_id(i) for i in range(len(joined))] == ["a", "b", "c"]
    assert [list(joined.captions(i)) for i in range(3)] == [["a0"], ["b0"], []]
    assert [joined.image(i).getpixel((0, 0)) for i in range(3)] == [97, 98, 99]
    assert joined.left_out == 3
    whole = Pooled(Shapes("val"), Shapes("test"))
    assert len(whole) == 2000 and whole.image_id(1500) == Shapes("test").image_id(500)


class Few:
    """Images named by letters, all of that letter's shade."""

    def __init__(self, names: str, captions: int = 1):
        self.names, self.count = names, captions

    def __len__(self) -> int:
        return len(self.names)

    def image_id(self, index: int) -> str:
        return self.names[index]

    def captions(self, index: int) -> list[str]:
        return [f"{self.names[index]}{j}" for j in range(self.count)]

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (1, 1), ord(self.names[index]))
