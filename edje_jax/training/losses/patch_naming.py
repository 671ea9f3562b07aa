"""Auxiliary loss of a backbone: what each patch holds."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def naming_loss(
    logits: Float[Array, "b n c"], labels: Int[Array, "b n"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Cross-entropy of what each patch holds. Background (label 0) counts a tenth."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=2)[..., 0]
    weights = jnp.where(labels > 0, 1.0, 0.1) * valid[:, None].astype(jnp.float32)
    return -jnp.sum(picked * weights) / jnp.maximum(jnp.sum(weights), 1.0)
