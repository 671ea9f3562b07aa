"""Distillation of a teacher's order of each row's candidates, whatever the scale of its scores.

A captioner scores in nats, a sum over tokens, and an EDJE in match logits: only differences between
candidates of one query mean the same in both, and a temperature brings them to one scale.
"""

from jaxtyping import Array, Bool, Float

from edje_jax.training import flops
from edje_jax.training.losses.listwise import lists_of, softmax_cross_entropy, teacher_entropy
from edje_jax.training.losses.term import RowContext, Term, pairs_of_teacher
from edje_jax.training.state import Metrics


def _lists(
    context: RowContext,
) -> tuple[Float[Array, "l c"], Float[Array, "l c"], Bool[Array, "l c"]]:
    """(the teacher's scores, the student's, which are usable) of each row's own pair and its
    negative images, and of the same pair and its negative captions."""
    assert context.rows.targets is not None
    usable = context.rows.negatives.usable_of(context.rows.valid)
    teacher = context.rows.targets["listwise_distillation"]
    return lists_of(*teacher), lists_of(*context.pairs), lists_of(*usable)


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean over all lists of H(softmax(teacher / temperature), softmax(student))."""
    temperature = context.objective.loss.distillation_temperature
    return softmax_cross_entropy(*_lists(context), temperature, context.counts.lists)


def _metrics(context: RowContext) -> Metrics:
    teacher, _, usable = _lists(context)
    temperature, count = context.objective.loss.distillation_temperature, context.counts.lists
    return {"teacher_entropy": teacher_entropy(teacher, usable, temperature, count)}


TERM = Term(
    _loss,
    needs_pairs=True,
    target=pairs_of_teacher,
    target_flops=flops.matching,
    metrics=_metrics,
)
