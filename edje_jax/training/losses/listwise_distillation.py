"""Distillation of a teacher's order of each row's candidates, whatever the scale of its scores.

A captioner scores in nats, a sum over tokens, and an EDJE in match logits: only differences between
candidates of one query mean the same in both, and a temperature brings them to one scale.
"""

from jaxtyping import Array, Float

from edje_jax.training import flops
from edje_jax.training.losses.listwise import lists_of, softmax_cross_entropy
from edje_jax.training.losses.term import RowContext, Term, pairs_of_teacher


def _loss(context: RowContext) -> Float[Array, ""]:
    """The mean over all lists of H(softmax(teacher / temperature), softmax(student)): of each row's
    own pair and its negative images, and of the same pair and its negative captions."""
    assert context.rows.targets is not None
    teacher = lists_of(*context.rows.targets["listwise_distillation"])
    usable = lists_of(*context.rows.negatives.usable_of(context.rows.valid))
    temperature = context.objective.loss.distillation_temperature
    return softmax_cross_entropy(
        teacher, lists_of(*context.pairs), usable, temperature, context.counts.lists
    )


TERM = Term(
    _loss,
    needs_pairs=True,
    target=pairs_of_teacher,
    target_flops=flops.matching,
)
