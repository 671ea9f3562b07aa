"""The train step of an EDJE: pure, top-level, jitted by its task.

The frozen backbone runs once per picture; the same features feed the student, the teacher and
the miner of hard negatives.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config import ImageRecipe, LossConfig
from edje_jax.data.images import normalise
from edje_jax.models.apply import apply
from edje_jax.models.backbone import DualTower
from edje_jax.models.edje import Edje
from edje_jax.training.losses import (
    distillation_loss,
    masked_lm_loss,
    matching_loss,
    text_recovery_loss,
)
from edje_jax.training.negatives import HardNegatives, hard_negatives
from edje_jax.training.steps import Metrics, TrainState, apply_gradients
from edje_jax.types import Batch

Phase = Literal["masked_lm", "all"]
"""Which losses a step trains: masked LM and text recovery alone, or all of them."""


class Frozen(NamedTuple):
    """Parameters that a step reads and does not change."""

    backbone: PyTree
    teacher: PyTree | None


class Features(NamedTuple):
    """What the frozen backbone says of a batch."""

    vision_tokens: Float[Array, "b n w"]
    image_embeddings: Float[Array, "b e"]
    text_embeddings: Float[Array, "b e"]


class Pairs(NamedTuple):
    """Match logits of a batch: each row's own pair, and its K hard negatives of both kinds."""

    positive: Float[Array, " b"]
    images: Float[Array, "b k"]
    captions: Float[Array, "b k"]


def edje_train_step(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    *,
    backbone: DualTower,
    model: Edje,
    teacher: Edje | None,
    loss: LossConfig,
    phase: Phase,
    recipe: ImageRecipe,
    special_ids: Sequence[int],
    mask_id: int,
    seed: int,
    optimiser: optax.GradientTransformation,
    learning_rate: optax.Schedule,
) -> tuple[TrainState, Metrics]:
    """One step on one batch; every random draw is a function of (seed, step)."""
    features = encode(backbone, frozen.backbone, batch, recipe)
    negatives = hard_negatives(
        features.text_embeddings,
        features.image_embeddings,
        batch.image_ids,
        batch.caption_ids,
        batch.valid,
        loss.negatives,
    )
    dropout, masking = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    taught = None
    if teacher is not None and phase == "all" and loss.distillation > 0:
        taught = match_pairs(teacher, frozen.teacher, features.vision_tokens, batch, negatives)

    def loss_fn(params):
        terms, metrics = {}, {}
        tokens = apply(model, params, "compress", features.vision_tokens)
        if phase == "all":
            pairs = _match(model, params, tokens, batch.joint_ids, negatives, dropout)
            if loss.match > 0:
                terms["match"] = match_term(pairs, negatives, batch.valid)
            metrics["match_accuracy"] = accuracy(pairs, negatives, batch.valid)
            if taught is not None:
                terms["distillation"] = distillation_term(pairs, taught, negatives, batch.valid)
        if loss.masked_lm > 0:
            hidden = mask_pieces(
                batch.joint_ids, batch.valid, loss.mask_probability, special_ids, mask_id, masking
            )
            logits = apply(
                model, params, "masked_lm", hidden.ids, tokens, hidden.positions, True,
                dropout_rng=dropout,
            )  # fmt: skip
            terms["masked_lm"] = masked_lm_loss(logits, hidden.labels, hidden.used)
        if loss.text_recovery > 0:
            guess = apply(model, params, "recover_text", batch.joint_ids, True, dropout_rng=dropout)
            terms["text_recovery"] = text_recovery_loss(
                guess, features.text_embeddings, batch.valid
            )
        total = sum((getattr(loss, name) * term for name, term in terms.items()), jnp.zeros(()))
        metrics |= {f"loss/{name}": term for name, term in terms.items()}
        return total, {"loss": total, **metrics}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    metrics["lr"] = learning_rate(state.step)
    return apply_gradients(state, gradients, optimiser), metrics


def encode(backbone: DualTower, params: PyTree, batch: Batch, recipe: ImageRecipe) -> Features:
    """The one pass of the frozen backbone."""
    image = apply(backbone, params, "encode_image", normalise(batch.images, recipe))
    text = apply(backbone, params, "encode_text", batch.backbone_ids)
    return Features(image.tokens, image.embedding, text)


def match_pairs(
    model: Edje, params: PyTree, vision_tokens: Array, batch: Batch, negatives: HardNegatives
) -> Pairs:
    """Match logits of a model that is not being trained, on the batch's pairs."""
    tokens = apply(model, params, "compress", vision_tokens)
    return _match(model, params, tokens, batch.joint_ids, negatives, None)


def _match(model, params, tokens, ids, negatives: HardNegatives, dropout_rng) -> Pairs:
    """All 1 + 2K pairs of every row in one pass."""
    rows, k = negatives.images.shape
    own = jnp.repeat(jnp.arange(rows), k)
    text_rows = jnp.concatenate([jnp.arange(rows), own, negatives.captions.reshape(-1)])
    image_rows = jnp.concatenate([jnp.arange(rows), negatives.images.reshape(-1), own])
    train = dropout_rng is not None
    logits = apply(
        model, params, "match", ids[text_rows], tokens[image_rows], train, dropout_rng=dropout_rng
    )
    positive, images, captions = jnp.split(logits, [rows, rows + rows * k])
    return Pairs(positive, images.reshape(rows, k), captions.reshape(rows, k))


def match_term(
    pairs: Pairs, negatives: HardNegatives, valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """The mean of matching against negative pictures and against negative captions."""
    images = matching_loss(pairs.positive, pairs.images, negatives.images_usable, valid)
    captions = matching_loss(pairs.positive, pairs.captions, negatives.captions_usable, valid)
    return (images + captions) / 2


def distillation_term(
    student: Pairs, teacher: Pairs, negatives: HardNegatives, valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """The mean over positives, negative pictures and negative captions."""
    masks = (
        valid,
        negatives.images_usable & valid[:, None],
        negatives.captions_usable & valid[:, None],
    )
    losses = [distillation_loss(*each) for each in zip(student, teacher, masks, strict=True)]
    return sum(losses, jnp.zeros(())) / 3


def accuracy(pairs: Pairs, negatives: HardNegatives, valid: Bool[Array, " b"]) -> Float[Array, ""]:
    """Share of the rows whose own pair beats all its hard negatives."""
    rivals = jnp.concatenate(
        [
            jnp.where(negatives.images_usable, pairs.images, -jnp.inf),
            jnp.where(negatives.captions_usable, pairs.captions, -jnp.inf),
        ],
        axis=1,
    )
    won = (pairs.positive > jnp.max(rivals, axis=1)) & valid
    return jnp.sum(won) / jnp.maximum(jnp.sum(valid), 1)


class MaskedPieces(NamedTuple):
    """A masked-LM problem with a static number of places to fill."""

    ids: Int[Array, "b t"]
    positions: Int[Array, " p"]
    """Into the flattened ids."""
    labels: Int[Array, " p"]
    used: Bool[Array, " p"]


def mask_pieces(
    ids: Int[Array, "b t"],
    valid: Bool[Array, " b"],
    probability: float,
    special_ids: Sequence[int],
    mask_id: int,
    rng: Array,
) -> MaskedPieces:
    """Replace each piece by [MASK] with a probability; never kept, never another word.

    The head then runs on `p` places instead of b * t: six standard deviations above the expected
    number for captions of full length, so that none is left out in practice.
    """
    special = jnp.isin(ids, jnp.asarray(special_ids, ids.dtype))
    masked = ~special & valid[:, None] & jax.random.bernoulli(rng, probability, ids.shape)
    most = ids.shape[0] * max(ids.shape[1] - 2, 1)
    deviation = math.sqrt(most * probability * (1 - probability))
    places = min(math.ceil(most * probability + 6 * deviation), ids.size)
    positions = jnp.nonzero(masked.reshape(-1), size=places, fill_value=0)[0]
    used = jnp.arange(places) < jnp.sum(masked)
    labels = ids.reshape(-1)[positions]
    return MaskedPieces(jnp.where(masked, mask_id, ids), positions, labels, used)
