"""Binary matching loss: each pair on its own, a match or none."""

import jax
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean


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
