"""Listwise distillation: a teacher's scores of a list of candidates teach a student's.

The cross-entropy of two softmaxes is our reconstruction of the loss of Fast & Slow (arXiv
2103.16553), which has no published code. Scores of a cross-encoder are so peaked that the softmax
says little beyond the first candidate (CPRD, arXiv 2407.07479); the likelihood of their order does
not depend on how peaked they are, and `teacher_entropy` tells how much a softmax has to teach.

A list is a row: scores of its candidates, and which of them are usable. Lists of fewer than two
usable candidates teach nothing and are left out of every mean. Where lists are a part of a batch,
`count` is the number of the whole batch's that teach. No gradient stops here: stop the teacher's
where it is computed.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from edje_jax.training.losses.masked_mean import masked_mean

_ABSENT = -1e30
"""Logit of a candidate that is not usable: its probability is exactly 0, and no gradient is NaN."""


def lists_of(
    own: Shaped[Array, " b"], images: Shaped[Array, "b k"], captions: Shaped[Array, "b k"]
) -> Shaped[Array, "l c"]:
    """Lists of c = 1 + k values: the images of each caption, then the captions of each image, the
    row's own first."""
    rows = jnp.concatenate([own, own])[:, None]
    return jnp.concatenate([rows, jnp.concatenate([images, captions])], axis=1)


def teaches(usable: Bool[Array, "r c"]) -> Bool[Array, " r"]:
    """Mask of the lists that have something to teach."""
    return jnp.sum(usable, axis=1) > 1


def softmax_cross_entropy(
    teacher: Float[Array, "r c"],
    student: Float[Array, "r c"],
    usable: Bool[Array, "r c"],
    temperature: float,
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """H(p, q) in nats, averaged over the lists, of p = softmax(teacher / temperature) and
    q = softmax(student)."""
    target = jnp.exp(_log_softmax(teacher / temperature, usable))
    per_list = -jnp.sum(target * _log_softmax(student, usable), axis=1)
    return masked_mean(per_list, teaches(usable), count)


def order_likelihood(
    teacher: Float[Array, "r c"], student: Float[Array, "r c"], usable: Bool[Array, "r c"]
) -> Float[Array, ""]:
    """Negative log-likelihood of the teacher's order, averaged over the choices of a list and then
    over the lists.

    Plackett-Luce by the student's logits (ListMLE, Xia et al., ICML 2008): the teacher's best
    candidate is chosen among all, its second best among the rest, and so on. A list of n candidates
    takes n - 1 choices. Equal scores of the teacher stand in the order of the list.
    """
    order = jnp.argsort(jnp.where(usable, -teacher, jnp.inf), axis=1, stable=True)
    ranked = jnp.take_along_axis(_masked(student, usable), order, axis=1)
    per_choice = jax.lax.cumlogsumexp(ranked, axis=1, reverse=True) - ranked
    there = jnp.take_along_axis(usable, order, axis=1)
    choices = jnp.maximum(jnp.sum(usable, axis=1) - 1, 1).astype(jnp.float32)
    total = jnp.sum(jnp.where(there, per_choice, 0.0), axis=1)
    return masked_mean(total / choices, teaches(usable))


def teacher_entropy(
    teacher: Float[Array, "r c"],
    usable: Bool[Array, "r c"],
    temperature: float,
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Entropy of softmax(teacher / temperature) in nats, averaged over the lists: 0 where the
    teacher sees one candidate alone, log(n) where n are equal to it."""
    return softmax_cross_entropy(teacher, teacher / temperature, usable, temperature, count)


def _log_softmax(logits: Float[Array, "r c"], usable: Bool[Array, "r c"]) -> Float[Array, "r c"]:
    return jax.nn.log_softmax(_masked(logits, usable), axis=1)


def _masked(logits: Float[Array, "r c"], usable: Bool[Array, "r c"]) -> Float[Array, "r c"]:
    return jnp.where(usable, logits.astype(jnp.float32), _ABSENT)
