"""The train step of the first-stage heads: pure, top-level, jitted by its task."""

from dataclasses import dataclass
from importlib import import_module

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.first_stage_run import FirstStageLoss
from edje_jax.models.heads.first_stage import FirstStageHeads, FirstStageOutput
from edje_jax.training.embedding_batches import Candidates, EmbeddedPairs, Taught
from edje_jax.training.losses.first_stage.context import FirstStageContext, Lists, Sides
from edje_jax.training.losses.listwise import teacher_entropy
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, apply_gradients

LOSSES = {
    name: import_module(f"edje_jax.training.losses.first_stage.{name}").loss
    for name in FirstStageLoss.weights()
}
"""Losses by the name of their weight, in the order in which they are added up."""


@dataclass(frozen=True)
class FirstStageSetup:
    """Everything that is the same at each step of a run."""

    config: FirstStageConfig
    loss: FirstStageLoss
    devices: Devices
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema: float = 0.0


def first_stage_train_step(
    state: TrainState, pairs: EmbeddedPairs, taught: Taught | None, *, setup: FirstStageSetup
) -> tuple[TrainState, Metrics]:
    """Train the heads and the scales of their similarities for one step."""
    heads = FirstStageHeads(setup.config)
    active = {
        name: loss
        for name, loss in LOSSES.items()
        if getattr(setup.loss, name) > 0 and (setup.config.bits or not name.startswith("code"))
    }

    def total(params: PyTree) -> tuple[Float[Array, ""], Metrics]:
        bound = heads.bind({"params": params["heads"]})
        context = FirstStageContext(
            setup.config, setup.loss, setup.devices, params["scales"],
            _sides(bound, pairs, setup.devices), _positive(pairs), pairs.valid,
            _lists(bound, pairs, taught, setup),
        )  # fmt: skip
        losses = {name: loss(context) for name, loss in active.items()}
        weighted = (getattr(setup.loss, name) * loss for name, loss in losses.items())
        metrics = {f"loss/{name}": loss for name, loss in losses.items()}
        if context.lists:
            metrics["teacher_entropy"] = _entropy(context)
        total = sum(weighted, jnp.zeros(()))
        return total, {"loss": total, "scale": context.scale, **metrics}

    gradients, metrics = jax.grad(total, has_aux=True)(state.params)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    metrics["lr"] = jnp.asarray(setup.learning_rate(state.step))
    return apply_gradients(state, gradients, setup.optimiser, setup.ema), metrics


def _sides(heads: FirstStageHeads, pairs: EmbeddedPairs, devices: Devices) -> tuple[Sides, Sides]:
    """Captions that ask for images, and images that ask for captions."""
    images = heads.of_pooled_images(pairs.images, pairs.pooled)
    texts = heads.of_texts(pairs.texts)
    return (
        Sides(texts, images, devices.shard_rows(pairs.texts) @ pairs.images.T),
        Sides(images, texts, devices.shard_rows(pairs.images) @ pairs.texts.T),
    )


def _positive(pairs: EmbeddedPairs) -> Bool[Array, "b b"]:
    """Pairs of the same image or caption."""
    same_image = pairs.image_ids[:, None] == pairs.image_ids[None, :]
    return same_image | (pairs.caption_ids[:, None] == pairs.caption_ids[None, :])


def _lists(
    heads: FirstStageHeads, pairs: EmbeddedPairs, taught: Taught | None, setup: FirstStageSetup
) -> tuple[Lists, ...]:
    """Queries with their candidates of both directions; none without a teacher."""
    if taught is None:
        return ()
    rows = slice(None, None, setup.loss.teacher_stride)
    pooled = None if pairs.pooled is None else pairs.pooled[rows]
    of_texts, of_images = taught
    made = (
        (of_texts, heads.of_texts(pairs.texts[rows]), heads.of_pooled_images(*_flat(of_texts))),
        (
            of_images,
            heads.of_pooled_images(pairs.images[rows], pooled),
            heads.of_texts(_flat(of_images)[0]),
        ),
    )
    return tuple(
        Lists(
            setup.devices.shard_rows(queries),
            FirstStageOutput(
                *(rows.reshape(*each.scores.shape, rows.shape[-1]) for rows in candidates)
            ),
            each.scores,
            each.usable,
        )
        for each, queries, candidates in made
    )


def _flat(candidates: Candidates) -> tuple[Array, Array | None]:
    """Embeddings [r * c, e] and pooled tokens [r * c, d] of all candidates."""
    embeddings, pooled = candidates.embeddings, candidates.pooled
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    return flat, None if pooled is None else pooled.reshape(-1, pooled.shape[-1])


def _entropy(context: FirstStageContext) -> Float[Array, ""]:
    """Entropy of the teacher's softmax in nats, the mean of both directions: how much more than the
    best candidate it tells."""
    each = [teacher_entropy(x.scores, x.usable, context.temperature) for x in context.lists]
    return (each[0] + each[1]) / 2
