"""Distillation of codes from the backbone's own cosines within a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import FirstStageContext
from edje_jax.training.losses.masked_mean import masked_mean


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """KL(p, q), p = softmax(cosine / cosine_temperature) and q = softmax(scale * similarity of
    codes) over the images of a batch for each caption, and over its captions for each image."""
    absent = jnp.where(context.valid, 0.0, -1e30)[None, :]
    losses = []
    for side in context.sides:
        logits = context.code_scales[:, None, None] * context.similarities_of_codes(side)
        wanted = jax.nn.log_softmax(side.cosines / context.loss.cosine_temperature + absent)[None]
        given = jax.nn.log_softmax(logits + absent[None])
        divergence = jnp.sum(jnp.exp(wanted) * (wanted - given), axis=-1)
        losses.append(jax.vmap(masked_mean, (0, None))(divergence, context.valid))
    return jnp.mean(jnp.stack(losses))
