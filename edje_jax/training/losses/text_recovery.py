"""Text-recovery loss."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term


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


def _loss(context: RowContext) -> Float[Array, ""]:
    rows, _ = context.auxiliary
    guess = context.bound().recover_text(rows.ids, context.training)
    return text_recovery_loss(
        guess, rows.text_embeddings, rows.valid, context.counts.auxiliary_rows
    )


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    return flops.layers(config.joint_encoder, config.max_text_length) / loss.auxiliary_stride


TERM = Term(_loss, _flops, comes_first=True, kinds=("edje",))
