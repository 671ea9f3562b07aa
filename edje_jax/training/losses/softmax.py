"""CLIP's softmax loss, for training backbones."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edje_jax.training.losses.match import matching_loss


def softmax_loss(
    logits: Float[Array, "b b"], positive: Bool[Array, "b b"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """CLIP's symmetric cross-entropy (arXiv 2103.00020, figure 3) of each text against the images
    and of each image against the texts.

    Departs from CLIP in that another row's positive, such as the same image, is no negative.
    """
    usable = ~positive & valid[None, :]
    own = jnp.diagonal(logits)
    losses = [matching_loss(own, of_one, usable, valid) for of_one in (logits, logits.T)]
    return sum(losses, jnp.zeros(())) / 2
