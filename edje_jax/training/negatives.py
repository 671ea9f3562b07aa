"""Negatives of matching: the most similar pairs that are not positives, and others at random.

Hard negatives alone teach a model to tell near misses apart and nothing of what is easily told: it
may then rank 10 candidates well and 100 worse (docs/rerank-depth.md). VEDJE trains with 24 hard and
25 random negatives.
"""

from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@runtime_checkable
class Identified(Protocol):
    """Rows that know which image they show and which caption they carry, such as a `Batch`."""

    @property
    def image_ids(self) -> Int[Array, " b"]:
        """Equal for rows that show the same image."""
        ...

    @property
    def caption_ids(self) -> Int[Array, " b"]:
        """Equal for rows with the same canonical caption."""
        ...


class Examples(NamedTuple):
    """Captions and their images: those that negatives are found for, or those they come from."""

    text_embeddings: Float[Array, "b e"]
    """From the backbone, unit length."""
    image_embeddings: Float[Array, "b e"]
    image_ids: Int[Array, " b"]
    """Equal for rows that show the same image."""
    caption_ids: Int[Array, " b"]
    """Equal for rows with the same canonical caption."""
    images_valid: Bool[Array, " b"]
    """Images that may be a negative."""
    captions_valid: Bool[Array, " b"]
    """Captions that may be a negative."""


class Kinds(NamedTuple):
    """Numbers of negatives of each row."""

    hard: int
    """Drawn evenly and without replacement among the most similar."""
    most_similar: int
    """By the backbone's cosine; as many as `hard` takes the very most similar."""
    random: int = 0
    """Drawn so among all others."""


class Negatives(NamedTuple):
    """Rows of the pool that negatives come from, K of each kind, and which of them may be used.

    The hard ones stand first, the most similar at the front; where too few rows differ from the
    positive, the rest is marked as not usable.
    """

    images: Int[Array, "b k"]
    """Images that caption i does not describe."""
    captions: Int[Array, "b k"]
    """Captions that do not describe image j."""
    images_usable: Bool[Array, "b k"]
    captions_usable: Bool[Array, "b k"]

    def usable_of(
        self, valid: Bool[Array, " b"]
    ) -> tuple[Bool[Array, " b"], Bool[Array, "b k"], Bool[Array, "b k"]]:
        """Masks of the pairs that may be used, in the order of `Pairs`, of rows of which some are
        `valid`."""
        return valid, self.images_usable & valid[:, None], self.captions_usable & valid[:, None]


class Pairs(NamedTuple):
    """A value for each pair of some rows: their own pairs, and their K negatives of both kinds."""

    positive: Float[Array, " r"]
    images: Float[Array, "r k"]
    captions: Float[Array, "r k"]


def pair_similarities(examples: Examples, pool: Examples, negatives: Negatives) -> Pairs:
    """The backbone's cosine of every pair that is scored."""
    text, image = examples.text_embeddings, examples.image_embeddings
    # As exact as the cosines that searches give the model.
    dot = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return Pairs(
        dot("be,be->b", text, image),
        dot("be,bke->bk", text, pool.image_embeddings[negatives.images]),
        dot("be,bke->bk", image, pool.text_embeddings[negatives.captions]),
    )


def choose_negatives(examples: Examples, pool: Examples, kinds: Kinds, key: Array) -> Negatives:
    """Hard and random negatives of both kinds from the pool.

    Every draw is a function of `key` and of the numbers of rows, so that it does not depend on how
    many devices the rows lie on.
    """
    allowed = ~positive_pairs(examples, pool)
    images_key, captions_key = jax.random.split(key)
    to_images = examples.text_embeddings @ pool.image_embeddings.T
    # Of a batch's own rows each pair is compared once.
    to_captions = (
        to_images.T if pool is examples else examples.image_embeddings @ pool.text_embeddings.T
    )
    images, images_usable = _choose(
        to_images,
        allowed & pool.images_valid[None, :],
        kinds,
        images_key,
    )
    captions, captions_usable = _choose(
        to_captions,
        allowed & pool.captions_valid[None, :],
        kinds,
        captions_key,
    )
    return Negatives(images, captions, images_usable, captions_usable)


def positive_pairs(a: Identified, b: Identified) -> Bool[Array, "a b"]:
    """True where two rows show the same image or carry the same caption.

    Both sides are masked by both, as another caption of the same image is no negative either; the
    published pre-training code compares texts alone.
    """
    same_image = a.image_ids[:, None] == b.image_ids[None, :]
    return same_image | (a.caption_ids[:, None] == b.caption_ids[None, :])


def _choose(
    similarity: Float[Array, "b p"], allowed: Bool[Array, "b p"], kinds: Kinds, key: Array
) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """(columns, which may be used) of each row: hard ones, then random ones."""
    values, columns = jax.lax.top_k(jnp.where(allowed, similarity, -jnp.inf), kinds.most_similar)
    usable = jnp.isfinite(values)
    hard_key, random_key = jax.random.split(key)
    if kinds.most_similar > kinds.hard:
        places, usable = _draw(usable, kinds.hard, hard_key)
        columns = jnp.take_along_axis(columns, places, axis=1)
    if not kinds.random:
        return columns, usable
    others = jnp.put_along_axis(allowed, columns, False, axis=1, inplace=False)
    drawn, there = _draw(others, kinds.random, random_key)
    return (
        jnp.concatenate([columns, drawn], axis=1),
        jnp.concatenate([usable, there], axis=1),
    )


def _draw(
    allowed: Bool[Array, "b p"], count: int, key: Array
) -> tuple[Int[Array, "b k"], Bool[Array, "b k"]]:
    """(`count` of each row's allowed columns, evenly and without replacement; which there are)."""
    lots = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -jnp.inf)
    values, columns = jax.lax.top_k(lots, count)
    return columns, jnp.isfinite(values)
