"""Distillation of hidden states from a teacher."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term


def hidden_states_loss(
    student: Float[Array, "b l t d"],
    teacher: Float[Array, "b l t d"],
    there: Bool[Array, "b t"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean squared difference of the rows of a caption that are there, averaged over captions
    (DeFormer's layer-wise loss, arXiv 2005.00697, section 3.2)."""
    difference = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    squares = jnp.mean(jnp.square(difference), axis=(1, 3))
    rows = jnp.sum(there.astype(jnp.float32), axis=1)
    per_caption = jnp.sum(jnp.where(there, squares, 0.0), axis=1) / jnp.maximum(rows, 1.0)
    return masked_mean(per_caption, rows > 0, count)


def text_states(context: RowContext, last: int) -> Float[Array, "r l t d"]:
    """Compute the captions' rows beside their own images, after each of the `last` layers."""
    model = context.model.bind({"params": context.params})
    states = model.hidden_states(context.rows.ids, context.own_tokens)[-last:]
    return jnp.stack([state[:, context.tokens.shape[1] + 1 :] for state in states], axis=1)


def _loss(context: RowContext) -> Float[Array, ""]:
    assert context.rows.targets is not None
    teacher, rows = context.rows.targets["hidden_states"], context.rows
    states = text_states(context, teacher.shape[1])
    there = rows.valid[:, None] & (rows.ids != context.model.config.joint_encoder.pad_token_id)
    return hidden_states_loss(states, teacher, there, context.counts.rows)


def _target(context: RowContext) -> Float[Array, "r l t d"]:
    """A teacher's states after the online layers that both models have, counted from the last."""
    models = (context.model, context.objective.model)
    return text_states(context, min(m.config.joint_encoder.online_layers for m in models))


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    return flops.encode_text(config) + flops.fused(config)


TERM = Term(_loss, _flops, target=_target, target_flops=_flops, kinds=("edje",))
