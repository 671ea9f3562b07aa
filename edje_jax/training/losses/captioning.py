"""Captioning loss: predict each token of a caption from its image and the tokens read before."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.models.captioner import LogProbabilities
from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term


def captioning_loss(
    found: LogProbabilities, valid: Array, count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Cross-entropy of a token in nats, averaged over the tokens of all captions and summed over
    the directions: VirTex's loss (arXiv 2006.06666), and up to a factor the negative sum of the
    scores by which Fast & Slow (arXiv 2103.16553) ranks. No negatives take part."""
    mask = found.present & valid[:, None]
    per_token = -jnp.sum(found.values, axis=0)
    return masked_mean(per_token, mask, count)


def _loss(context: RowContext) -> Float[Array, ""]:
    rows = context.rows
    found = context.bound().log_probabilities(rows.ids, context.own_tokens, context.training)
    return captioning_loss(found, rows.valid, context.counts.predicted)


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    return flops.fused(config)


TERM = Term(_loss, _flops, comes_first=True, kinds=("captioner",))
