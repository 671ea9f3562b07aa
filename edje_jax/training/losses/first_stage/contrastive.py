"""Contrastive loss of embeddings: a batch's own pairs against all others."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import FirstStageContext, contrastive


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """InfoNCE of cosines, equal images and captions masked."""
    losses = []
    for side in context.sides:
        queries = context.devices.shard_rows(side.queries.embeddings)
        logits = context.scale * queries @ side.items.embeddings.T
        losses.append(contrastive(logits, context.positive, context.valid))
    return jnp.mean(jnp.stack(losses))
