"""Hard negatives against a search written out: nothing that is a positive, nothing invalid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.training.negatives import (
    Examples,
    Kinds,
    Negatives,
    choose_negatives,
    positive_pairs,
)

B, E = 12, 5
CHOOSE = jax.jit(choose_negatives, static_argnums=2)


def unit(seed: int, rows: int = B) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, E))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def examples_of(text, image, image_ids, caption_ids, valid) -> Examples:
    arrays = (text, image, image_ids, caption_ids, valid, valid)
    return Examples(*(jnp.asarray(x) for x in arrays))


def mine(text, image, image_ids, caption_ids, valid, k, random=0, seed=0, of=0) -> Negatives:
    rows = examples_of(text, image, image_ids, caption_ids, valid)
    kinds = Kinds(k, of or k, random)
    return jax.tree.map(np.asarray, CHOOSE(rows, rows, kinds, jax.random.key(seed)))


def search(similarity: np.ndarray, allowed: np.ndarray, k: int) -> list[list[int]]:
    """Per row, the k most similar of the allowed columns, the first one first on a tie."""
    return [
        sorted(np.flatnonzero(allowed[i]), key=lambda j, row=row: (-row[j], j))[:k]
        for i, row in enumerate(similarity)
    ]


def usable(indices: np.ndarray, flags: np.ndarray) -> list[list[int]]:
    return [list(row[flag]) for row, flag in zip(indices, flags, strict=True)]


@pytest.mark.parametrize("k", [1, 3, B])
def test_equals_a_search_written_out(k):
    rng = np.random.default_rng(2)
    text, image = unit(0), unit(1)
    image_ids, caption_ids = rng.integers(0, 7, B), rng.integers(0, 5, B)
    valid = rng.random(B) < 0.8
    assert not valid.all()
    allowed = np.array(
        [
            [
                image_ids[i] != image_ids[j] and caption_ids[i] != caption_ids[j] and valid[j]
                for j in range(B)
            ]
            for i in range(B)
        ]
    )
    found = mine(text, image, image_ids, caption_ids, valid, k)
    assert found.images.shape == found.captions_usable.shape == (B, k)
    similarity = text @ image.T
    assert usable(found.images, found.images_usable) == search(similarity, allowed, k)
    assert usable(found.captions, found.captions_usable) == search(similarity.T, allowed, k)
    # What can be used comes first, so that a mask is a length.
    for flags in (found.images_usable, found.captions_usable):
        assert (np.sort(flags, axis=1)[:, ::-1] == flags).all()


def test_the_same_image_or_caption_is_a_positive_both_ways():
    image_ids, caption_ids = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 1])
    expected = [[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]
    rows = examples_of(unit(0, 4), unit(1, 4), image_ids, caption_ids, np.ones(4, bool))
    pairs = positive_pairs(rows, rows)
    np.testing.assert_array_equal(pairs, np.array(expected, bool))


def test_the_very_same_image_is_no_negative_however_similar():
    # Rows 0 and 1 show one image under two captions, rows 2 and 3 two images under one.
    image = unit(1, 4)
    image[1] = image[0]
    text = image.copy()
    found = mine(text, image, np.array([0, 0, 1, 2]), np.array([0, 1, 2, 2]), np.ones(4, bool), 3)
    for indices, flags in (
        (found.images, found.images_usable),
        (found.captions, found.captions_usable),
    ):
        assert [sorted(row) for row in usable(indices, flags)] == [[2, 3], [2, 3], [0, 1], [0, 1]]


def test_fewer_rows_than_asked_for_are_marked_unusable():
    everywhere_the_same = np.zeros(B, int)
    found = mine(unit(0), unit(1), everywhere_the_same, np.arange(B), np.ones(B, bool), 2)
    assert not found.images_usable.any() and not found.captions_usable.any()
    one_valid = np.arange(B) == 4
    found = mine(unit(0), unit(1), np.arange(B), np.arange(B), one_valid, 2)
    # Row 4 is every other row's only candidate, and has none itself.
    others = np.arange(B) != 4
    assert (found.images[others, 0] == 4).all() and (found.captions[others, 0] == 4).all()
    np.testing.assert_array_equal(found.images_usable, np.column_stack([others, np.zeros(B)]))
    np.testing.assert_array_equal(found.captions_usable, found.images_usable)


def test_ties_go_to_the_first_row():
    same = np.repeat(unit(0, 1), B, axis=0)
    found = mine(same, same, np.arange(B), np.arange(B), np.ones(B, bool), 3)
    for i in range(B):
        expected = [j for j in range(B) if j != i][:3]
        assert list(found.images[i]) == list(found.captions[i]) == expected
    assert found.images_usable.all() and found.captions_usable.all()


def test_what_stands_in_invalid_rows_changes_nothing():
    valid = np.arange(B) % 3 != 0
    ids = np.arange(B)
    clean = mine(unit(0), unit(1), ids, ids, valid, 3)
    for rubbish in (0.0, 1e9, np.nan):
        text, image = (np.where(valid[:, None], unit(seed), rubbish) for seed in (0, 1))
        found = mine(text.astype(np.float32), image.astype(np.float32), ids, ids, valid, 3)
        for ours, expected in zip(found, clean, strict=True):
            np.testing.assert_array_equal(ours[valid], expected[valid])


def test_hard_negatives_are_drawn_among_the_most_similar():
    arguments = (unit(0), unit(1), np.arange(B), np.arange(B), np.ones(B, bool))
    nearest = mine(*arguments, 4).images
    draws = [mine(*arguments, 2, seed=seed, of=4) for seed in range(60)]
    for i in range(B):
        pairs = {frozenset(found.images[i].tolist()) for found in draws}
        # All six pairs of the four, and no other row.
        assert len(pairs) == 6 and frozenset().union(*pairs) == set(nearest[i].tolist())
    # Where fewer than that are left, what there is; a random one beside it is another.
    few = np.arange(B) < 4
    found = mine(*arguments[:4], few, 2, 1, seed=3, of=4)
    assert found.images_usable[:4].all() and found.images[found.images_usable].max() < 4
    assert all(len(set(row)) == 3 for row in usable(found.images, found.images_usable))


# --- random negatives -----------------------------------------------------------------------------


def test_random_negatives_are_drawn_evenly_from_what_is_neither_positive_nor_hard():
    ids = np.arange(B)
    ids[1] = 0  # Rows 0 and 1 show one image
    valid = ids != 7
    draws = [mine(unit(0), unit(1), ids, np.arange(B), valid, 2, 3, seed) for seed in range(200)]
    hard = mine(unit(0), unit(1), ids, np.arange(B), valid, 2)
    counts = np.zeros((B, B), int)
    for found in draws:
        np.testing.assert_array_equal(found.images[:, :2], hard.images)
        np.testing.assert_array_equal(found.captions[:, :2], hard.captions)
        assert found.images_usable.all() and found.captions_usable.all()
        np.add.at(counts, (np.arange(B)[:, None], found.images[:, 2:]), 1)
    allowed = (ids[:, None] != ids[None]) & valid[None]
    np.put_along_axis(allowed, hard.images, False, axis=1)
    assert not counts[~allowed].any()
    # 3 of n others a draw: each is binomial, and six deviations off is out of the question.
    share = 3 / allowed.sum(axis=1, keepdims=True)
    off = np.abs(counts - 200 * share) / np.sqrt(200 * share * (1 - share))
    assert off[allowed].max() < 6
    # No row stands twice in a list.
    assert all(len(set(row)) == 5 for found in draws for row in found.images.tolist())


def test_a_draw_repeats_with_its_key_and_differs_between_captions_and_images():
    arguments = (unit(0), unit(1), np.arange(B), np.arange(B), np.ones(B, bool), 1, 4)
    first, again, other = (mine(*arguments, seed) for seed in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.images != other.images).any() and (first.captions != other.captions).any()
    assert (first.images[:, 1:] != first.captions[:, 1:]).any()


def test_random_negatives_that_do_not_exist_are_marked_unusable():
    found = mine(unit(0, 4), unit(1, 4), np.arange(4), np.arange(4), np.ones(4, bool), 2, 2)
    assert found.images_usable.tolist() == [[True, True, True, False]] * 4
    usable_rows = usable(found.images, found.images_usable)
    assert all(len(set(row)) == 3 and i not in row for i, row in enumerate(usable_rows))


def test_negatives_come_from_a_larger_pool_but_for_captions_that_may_not():
    rows = examples_of(unit(0), unit(1), np.arange(B), np.arange(B), np.ones(B, bool))
    more = examples_of(
        unit(2), unit(3), np.arange(50, 50 + B), np.arange(50, 50 + B), np.ones(B, bool)
    )
    more = more._replace(captions_valid=jnp.arange(B) < 6)
    pool = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, more)
    found = choose_negatives(rows, pool, Kinds(5, 5, 6), jax.random.key(0))
    allowed = ~np.asarray(positive_pairs(rows, pool))
    similarity = unit(0) @ np.concatenate([unit(1), unit(3)]).T
    assert np.asarray(found.images)[:, :5].tolist() == search(similarity, allowed, 5)
    similarity = unit(1) @ np.concatenate([unit(0), unit(2)]).T
    allowed = allowed & np.asarray(pool.captions_valid)
    assert np.asarray(found.captions)[:, :5].tolist() == search(similarity, allowed, 5)
    assert (np.asarray(found.images) >= B).any() and (np.asarray(found.captions) >= B).any()
    assert np.asarray(found.captions).max() < B + 6
