"""Order of a teacher's scores alone, followed by embeddings."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import FirstStageContext
from edje_jax.training.losses.listwise import order_likelihood


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """Likelihood of the teacher's order (ListMLE): scores of a joint encoder are so peaked that
    their softmax says little beyond the first candidate (CPRD, arXiv 2407.07479)."""
    losses = [
        order_likelihood(
            each.scores,
            context.scale
            * jnp.einsum("re,rce->rc", each.queries.embeddings, each.candidates.embeddings),
            each.usable,
        )
        for each in context.lists
    ]
    return sum(losses, jnp.zeros(())) / 2
