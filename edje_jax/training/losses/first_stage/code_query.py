"""Contrastive loss of a query's projection against codes, at every length."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.training.losses.first_stage.context import (
    FirstStageContext,
    contrastive,
    products_by_length,
    signs,
)


def loss(context: FirstStageContext) -> Float[Array, ""]:
    """InfoNCE of cosines between what is asked with, in full precision, and codes that are stored:
    captions against codes of images, and images against codes of captions.

    It is what rescoring by the query's projection sorts by (as in BPR, arXiv 2106.00882).
    """
    lengths = context.config.code_lengths
    bits = jnp.array(lengths, jnp.float32)[:, None]
    each, losses = jax.vmap(contrastive, (0, None, None)), []
    for side in context.sides:
        queries = context.devices.shard_rows(side.queries.projections)
        products = products_by_length("ik,jk->ij", queries, signs(side.items.projections), lengths)
        squares = products_by_length("ik,ik->i", queries, queries, lengths)
        norms = jnp.sqrt(jnp.maximum(squares * bits, 1e-12))
        logits = context.code_scales[:, None, None] * products / norms[:, :, None]
        losses.append(each(logits, context.positive, context.valid))
    return jnp.mean(jnp.stack(losses))
