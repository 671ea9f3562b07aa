"""The losses, per example where they can be: pure functions of logits and masks.

Every mean is a masked sum over a masked count, so that an invalid row weighs nothing. All
arithmetic is float32. Where rows are a part of a batch, `count` is the whole batch's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_mean(
    values: Float[Array, "..."], mask: Bool[Array, "..."], count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean over the True entries of a mask of the same shape; 0 if there are none.

    With `count`, that of a whole of which these values are a part, the part's share in its mean.
    """
    total = jnp.sum(mask) if count is None else count
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(total.astype(jnp.float32), 1.0)


def matching_loss(
    positive: Float[Array, " b"],
    negatives: Float[Array, "b k"],
    usable: Bool[Array, "b k"],
    valid: Bool[Array, " b"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy of each positive's match logit against its hard negatives.

    The published code's form; the paper (section 3) words it as binary classification. `usable`
    is False for negatives that do not exist, because too few rows differ from the positive.
    """
    negatives = jnp.where(usable, negatives, -jnp.inf)
    logits = jnp.concatenate([positive[:, None], negatives], axis=1)
    per_example = jax.nn.logsumexp(logits, axis=1) - positive
    return masked_mean(per_example, valid, count)


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


def masked_lm_loss(
    logits: Float[Array, "... p v"],
    labels: Int[Array, "... p"],
    mask: Bool[Array, "... p"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Cross-entropy of the original pieces at the masked positions."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    return masked_mean(-picked, mask, count)


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


def sigmoid_loss(
    logits: Float[Array, "t b"], positive: Bool[Array, "t b"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """SigLIP's loss (arXiv 2303.15343, eq. 1): every pair is a yes-no question; per text."""
    pairs = valid[:, None] & valid[None, :]
    signed = jnp.where(positive, logits, -logits)
    total = jnp.sum(jnp.where(pairs, -jax.nn.log_sigmoid(signed), 0.0))
    return total / jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)


def naming_loss(
    logits: Float[Array, "b n c"], labels: Int[Array, "b n"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Cross-entropy of what each patch holds. Background (label 0) counts a tenth."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=2)[..., 0]
    weights = jnp.where(labels > 0, 1.0, 0.1) * valid[:, None].astype(jnp.float32)
    return -jnp.sum(picked * weights) / jnp.maximum(jnp.sum(weights), 1.0)
