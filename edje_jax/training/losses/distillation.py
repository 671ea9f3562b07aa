"""Distillation of match logits from a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term
from edje_jax.training.negatives import Pairs


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


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean over positives, negative images and negative captions."""
    assert context.rows.targets is not None
    teacher: Pairs = context.rows.targets["distillation"]
    losses = [
        distillation_loss(student, target, mask, count)
        for student, target, (mask, count) in zip(
            context.pairs, teacher, context.pair_masks(), strict=True
        )
    ]
    return sum(losses, jnp.zeros(())) / 3


TERM = Term(
    _loss,
    needs_pairs=True,
    target=lambda context: context.pairs,
    target_flops=flops.matching,
)
