"""Binary matching loss: each pair on its own, a match or none."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term


def binary_matching_loss(
    logits: Float[Array, "..."],
    is_match: bool,
    mask: Bool[Array, "..."],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy of match logits of pairs that all match, or all do not.

    The paper's wording of matching (arXiv 2510.06820, section 3). Unlike the softmax of
    `matching_loss`, it sees a constant that is added to all logits of a caption or an image: what
    it teaches is comparable between queries.
    """
    signed = -logits if is_match else logits
    return masked_mean(jax.nn.softplus(signed), mask, count)


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean over positives, negative images and negative captions."""
    losses = [
        binary_matching_loss(logits, kind == 0, mask, count)
        for kind, (logits, (mask, count)) in enumerate(
            zip(context.pairs, context.pair_masks(), strict=True)
        )
    ]
    return sum(losses, jnp.zeros(())) / 3


TERM = Term(_loss, needs_pairs=True, is_binary=True)
