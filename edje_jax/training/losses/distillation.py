"""Distillation of match logits from a teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.training import flops
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term, pairs_of_teacher
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


def _match_logits(context: RowContext, scores: Pairs) -> Pairs:
    """Logits of a match of a teacher's scores: calibrated, of a teacher that needs it."""
    calibration = context.objective.calibration
    if calibration is None:
        return scores
    if weight := calibration.similarity_weight:
        assert context.rows.similarities is not None, "Objective.reads_similarities"
        scores = Pairs(
            *(h + weight * c for h, c in zip(scores, context.rows.similarities, strict=True))
        )
    return Pairs(*(h / calibration.temperature + calibration.bias for h in scores))


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean over positives, negative images and negative captions."""
    assert context.rows.targets is not None
    teacher = _match_logits(context, context.rows.targets["distillation"])
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
    target=pairs_of_teacher,
    target_flops=flops.matching,
    is_binary=True,
)
