"""Hard negatives: the most similar pairs of the batch that are not positives."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class HardNegatives(NamedTuple):
    """Row numbers into the batch, and which of them may be used."""

    images: Int[Array, "b k"]
    """For caption i, the K most similar pictures that are not its own."""
    captions: Int[Array, "b k"]
    """For picture j, the K most similar captions that are not its own."""
    images_usable: Bool[Array, "b k"]
    captions_usable: Bool[Array, "b k"]


def positive_pairs(
    image_ids: Int[Array, " b"], caption_ids: Int[Array, " b"]
) -> Bool[Array, "b b"]:
    """True where two rows show the same picture or carry the same caption.

    Both sides are masked by both, as another caption of the same picture is no negative either;
    the published pre-training code compares texts alone.
    """
    same_image = image_ids[:, None] == image_ids[None, :]
    return same_image | (caption_ids[:, None] == caption_ids[None, :])


def hard_negatives(
    text_embeddings: Float[Array, "b e"],
    image_embeddings: Float[Array, "b e"],
    image_ids: Int[Array, " b"],
    caption_ids: Int[Array, " b"],
    valid: Bool[Array, " b"],
    k: int,
) -> HardNegatives:
    """The K hardest negatives by the backbone's own cosine similarities (unit-length inputs).

    Where fewer than K rows qualify, the rest are marked unusable.
    """
    similarity = text_embeddings @ image_embeddings.T
    forbidden = positive_pairs(image_ids, caption_ids) | ~valid[None, :]
    image_scores, images = jax.lax.top_k(jnp.where(forbidden, -jnp.inf, similarity), k)
    caption_scores, captions = jax.lax.top_k(jnp.where(forbidden, -jnp.inf, similarity.T), k)
    return HardNegatives(images, captions, jnp.isfinite(image_scores), jnp.isfinite(caption_scores))
