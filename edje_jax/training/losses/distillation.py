"""Distillation of match logits from a teacher."""

import jax
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training.losses.masked_mean import masked_mean


def distillation_loss(
    student: Float[Array, "..."],
    teacher: Float[Array, "..."],
    mask: Bool[Array, "..."],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy between sigmoid(teacher logit) and the student's logit."""
    target = jax.nn.sigmoid(teacher)
    per_pair = jax.nn.softplus(student) - target * student
    return masked_mean(per_pair, mask, count)
