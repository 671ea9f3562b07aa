"""Contrastive loss of codes: a batch's own pairs against all others, at every length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import FirstStageContext, contrastive


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """InfoNCE of the cosines of codes, the mean over all lengths."""
    each, losses = jax.vmap(contrastive, (0, None, None)), []
    for side in context.sides:
        logits = context.code_scales[:, None, None] * context.similarities_of_codes(side)
        losses.append(each(logits, context.positive, context.valid))
    return jnp.mean(jnp.stack(losses))
