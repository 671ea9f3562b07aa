"""SigLIP's sigmoid loss, for training backbones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def sigmoid_loss(
    logits: Float[Array, "t b"], positive: Bool[Array, "t b"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """SigLIP's loss (arXiv 2303.15343, eq. 1): every pair is a yes-no question; per text."""
    pairs = valid[:, None] & valid[None, :]
    signed = jnp.where(positive, logits, -logits)
    total = jnp.sum(jnp.where(pairs, -jax.nn.log_sigmoid(signed), 0.0))
    return total / jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
