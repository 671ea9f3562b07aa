"""Masked-language-model loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term
from edje_jax.training.masking import masked_places


def masked_lm_loss(
    logits: Float[Array, "... p v"],
    labels: Int[Array, "... p"],
    mask: Bool[Array, "... p"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the original tokens at the masked positions."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return masked_mean(-picked, mask, count)


def _loss(context: RowContext) -> Float[Array, ""]:
    objective, (rows, tokens) = context.objective, context.auxiliary
    places = masked_places(
        rows.ids, rows.masked, objective.loss.mask_probability, objective.devices.count
    )
    hidden = jnp.where(rows.masked, objective.mask_id, rows.ids)
    logits = context.bound().masked_lm(hidden, tokens, places.positions, context.training)
    return masked_lm_loss(logits, places.labels, places.used, context.counts.masked)


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    """A pass over a row, and the head over the tokens that it hides."""
    joint = config.joint_encoder
    head = 2.0 * joint.hidden_size * (joint.hidden_size + joint.vocab_size)
    hidden = loss.mask_probability * config.max_text_length
    encoder = flops.encode_text(config) + flops.fused(config)
    return (encoder + hidden * head) / loss.auxiliary_stride


TERM = Term(_loss, _flops, comes_first=True, kinds=("edje",))
