"""Matching loss: each positive pair against its negatives."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term


def matching_loss(
    positive: Float[Array, " b"],
    negatives: Float[Array, "b k"],
    usable: Bool[Array, "b k"],
    valid: Bool[Array, " b"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy of each positive's match logit against its negatives.

    The published code's form; the paper (section 3) words it as binary classification. `usable`
    is False for negatives that do not exist, because too few rows differ from the positive.
    """
    negatives = jnp.where(usable, negatives, -jnp.inf)
    logits = jnp.concatenate([positive[:, None], negatives], axis=1)
    per_example = jax.nn.logsumexp(logits, axis=1) - positive
    return masked_mean(per_example, valid, count)


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean of matching against negative images and against negative captions."""
    pairs, rows = context.pairs, context.rows
    losses = [
        matching_loss(pairs.positive, rivals, usable, rows.valid, context.counts.rows)
        for rivals, usable in (
            (pairs.images, rows.negatives.images_usable),
            (pairs.captions, rows.negatives.captions_usable),
        )
    ]
    return sum(losses, jnp.zeros(())) / 2


TERM = Term(_loss, needs_pairs=True)
