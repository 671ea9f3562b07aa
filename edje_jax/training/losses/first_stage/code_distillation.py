"""Distillation of codes: the teacher's scores of a query's candidates, at every length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import (
    FirstStageContext,
    signs,
    similarities_by_length,
)
from edje_jax.training.losses.listwise import softmax_cross_entropy


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """As `distillation`, by codes on both sides; the mean over all lengths."""
    losses = []
    for each in context.lists:
        queries, candidates = signs(each.queries.projections), signs(each.candidates.projections)
        similar = similarities_by_length(
            "rk,rck->rc", queries, candidates, context.config.code_lengths
        )
        logits = context.code_scales[:, None, None] * similar
        follow = jax.vmap(softmax_cross_entropy, (None, 0, None, None))
        losses.append(follow(each.scores, logits, each.usable, context.temperature))
    return jnp.mean(sum(losses, jnp.zeros(())) / 2)
