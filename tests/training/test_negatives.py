"""Hard negatives against a search written out: nothing that is a positive, nothing invalid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.training.negatives import HardNegatives, hard_negatives, positive_pairs

B, E = 12, 5


def unit(seed: int, rows: int = B) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, E))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def mine(text, image, image_ids, caption_ids, valid, k) -> HardNegatives:
    arrays = (jnp.asarray(x) for x in (text, image, image_ids, caption_ids, valid))
    found = jax.jit(hard_negatives, static_argnames="k")(*arrays, k=k)
    return jax.tree.map(np.asarray, found)


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


def test_the_same_picture_or_caption_is_a_positive_both_ways():
    image_ids, caption_ids = np.array([0, 0, 1, 2]), np.array([0, 1, 2, 1])
    expected = [[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]]
    pairs = positive_pairs(jnp.asarray(image_ids), jnp.asarray(caption_ids))
    np.testing.assert_array_equal(pairs, np.array(expected, bool))


def test_the_very_same_picture_is_no_negative_however_similar():
    # Rows 0 and 1 show one picture under two captions, rows 2 and 3 two pictures under one.
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
