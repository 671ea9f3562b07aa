"""Masked-language-model loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean


def masked_lm_loss(
    logits: Float[Array, "... p v"],
    labels: Int[Array, "... p"],
    mask: Bool[Array, "... p"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the original pieces at the masked positions."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return masked_mean(-picked, mask, count)
