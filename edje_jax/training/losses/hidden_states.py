"""Distillation of hidden states from a teacher."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean


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
