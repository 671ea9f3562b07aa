"""Distillation of embeddings: the teacher's scores of a query's candidates."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import FirstStageContext
from edje_jax.training.losses.listwise import softmax_cross_entropy


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """H(p, q), p = softmax(teacher's scores / temperature) and q = softmax(scale * cosine) over the
    candidates of one query: one text with many images, and one image with many texts.

    Fast & Slow (arXiv 2103.16553) distils in this way; its formula, temperature and candidates are
    not published, and this is our reconstruction.
    """
    losses = [
        softmax_cross_entropy(
            each.scores,
            context.scale
            * jnp.einsum("re,rce->rc", each.queries.embeddings, each.candidates.embeddings),
            each.usable,
            context.temperature,
        )
        for each in context.lists
    ]
    return sum(losses, jnp.zeros(())) / 2
