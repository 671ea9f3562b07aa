"""Text-recovery loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean


def text_recovery_loss(
    predicted: Float[Array, "b e"],
    target: Float[Array, "b e"],
    valid: Bool[Array, " b"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """1 - cosine between the text-only [CLS], projected, and the backbone's text embedding."""
    norms = jnp.linalg.norm(predicted, axis=-1) * jnp.linalg.norm(target, axis=-1)
    cosine = jnp.sum(predicted * target, axis=-1) / jnp.maximum(norms, 1e-8)
    return masked_mean(1.0 - cosine, valid, count)
