"""The train step of an EDJE: pure, top-level, jitted by its task.

The frozen backbone runs once per image; the same features feed the student, the teacher and the
choice of negatives. Negatives come from the whole batch, on however many devices it lies and in
however many chunks it is worked through, and from the queue if there is one: embeddings and
compressed tokens are sent for that, vision tokens never.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise_all
from edje_jax.models.frames import encode_vision
from edje_jax.models.pair_scorer import PairScorer
from edje_jax.models.scorers import make_scorer
from edje_jax.models.towers import DualTower
from edje_jax.training.gradients import gradients_of, in_chunks
from edje_jax.training.losses.table import active_terms, heads_of_terms, loss_of_rows
from edje_jax.training.losses.term import Objective, RowContext
from edje_jax.training.masking import choose_masked
from edje_jax.training.negatives import (
    Examples,
    Kinds,
    Negatives,
    choose_negatives,
    pair_similarities,
)
from edje_jax.training.queue import Queue, empty_queue, push
from edje_jax.training.rows import Counts, Rows
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, apply_gradients, init_state
from edje_jax.types import Batch, Features


class Frozen(NamedTuple):
    """Parameters that a step reads and does not change."""

    backbone: PyTree
    teacher: PyTree | None


@dataclass(frozen=True)
class StepSetup:
    """Everything that is the same at each step of a run."""

    objective: Objective
    backbone: DualTower
    recipe: ImageRecipe
    special_ids: Sequence[int]
    """Tokens that masked LM never hides."""
    seed: int
    optimiser: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema: float = 0.0
    """Decay of the running average of the parameters; 0 keeps none."""
    chunks: int = 1
    """Parts that a batch is worked through in, for the same gradients in less memory. Negatives
    and masked tokens do not depend on it; the draws of dropout do."""


def fresh_state(setup: StepSetup) -> TrainState:
    """State of a run that has taken no step: parameters drawn from the seed, an empty queue.

    Beside the model's parameters stand those of modules that training alone has
    (`Term.init_head`).
    """
    config = setup.objective.model.config
    tokens = jnp.zeros((1, *config.vision_shape))
    ids = jnp.ones((1, 3), jnp.int32)
    key = jax.random.key(setup.seed)
    params = make_scorer(config).init(key, tokens, ids)["params"]
    params = {**params, **heads_of_terms(setup.objective.loss, config, key)}
    state = init_state(params, setup.optimiser, setup.ema)
    if size := setup.objective.loss.queue:
        return dataclasses.replace(state, queue=empty_queue(config, size))
    return state


def jit_step(setup: StepSetup) -> Callable[..., tuple[TrainState, Metrics]]:
    """Jit (state, frozen, batch) -> (state, metrics) on the devices of a setup."""
    devices = setup.objective.devices
    # Stated, so that the second step gets a state that lies as the first one's did.
    state = devices.shardings(jax.eval_shape(partial(fresh_state, setup)))
    step = partial(edje_train_step, setup=setup)
    return devices.jit(step, donate_argnums=0, out_shardings=(state, devices.replicated))


def edje_train_step(
    state: TrainState, frozen: Frozen, batch: Batch, *, setup: StepSetup
) -> tuple[TrainState, Metrics]:
    """Train for one step on one batch; every random draw is a function of (seed, step)."""
    objective, chunks = setup.objective, setup.chunks
    devices, pad = objective.devices, objective.model.config.joint_encoder.pad_token_id
    features = batch.features or in_chunks(
        lambda part: encode(setup.backbone, frozen.backbone, part, setup.recipe),
        batch, chunks, devices,
    )  # fmt: skip
    of_step = jax.random.fold_in(jax.random.key(setup.seed), state.step)
    dropout, masking = jax.random.split(of_step)
    examples, pool = examples_of(batch, features, state.queue, pad, devices)
    negatives = negatives_of(examples, pool, objective, jax.random.fold_in(of_step, 2))
    masked = choose_masked(
        batch.joint_ids, batch.valid, objective.loss.mask_probability, setup.special_ids, masking
    )
    rows = Rows(
        jnp.arange(len(batch.valid)), batch.joint_ids, masked, batch.valid,
        features.text_embeddings, negatives,
    )  # fmt: skip
    if objective.reads_similarities:
        rows = rows._replace(similarities=pair_similarities(examples, pool, negatives))
    terms = active_terms(objective.loss, objective.phase, objective.teacher is not None)
    if any(term.reads_vision_tokens for term in terms.values()):
        rows = rows._replace(vision_tokens=features.vision_tokens)
    counts = Counts.of(rows, pad, objective.auxiliary_stride)
    rows = rows._replace(targets=targets_of(objective, frozen, features, rows, counts, chunks))

    def loss(params: PyTree, tokens: Array, rows: Rows, dropout: Array):
        return loss_of_rows(
            RowContext(
                objective, objective.model, params, tokens, batch.joint_ids, rows, counts,
                dropout, state.queue,
            )
        )  # fmt: skip

    gradients, metrics, tokens = gradients_of(
        loss, partial(_compress, objective.model), state.params, features.vision_tokens, rows,
        dropout, chunks, devices,
    )  # fmt: skip
    metrics["grad_norm"] = optax.tree.norm(gradients)
    metrics["lr"] = jnp.asarray(setup.learning_rate(state.step))
    after = apply_gradients(state, gradients, setup.optimiser, setup.ema)
    if state.queue is not None:
        kept = push(state.queue, batch, features, tokens, pad)
        after = dataclasses.replace(after, queue=kept)
    return after, metrics


def encode(backbone: DualTower, params: PyTree, batch: Batch, recipe: ImageRecipe) -> Features:
    """Run the frozen backbone over a batch."""
    assert batch.images is not None
    image = encode_vision(backbone.bind({"params": params}), normalise_all(batch.images, recipe))
    text = backbone.bind({"params": params}).encode_text(batch.backbone_ids)
    return Features(image.tokens, image.embedding, text)


def examples_of(
    batch: Batch, features: Features, queue: Queue | None, pad: int, devices: Devices
) -> tuple[Examples, Examples]:
    """(the batch's rows, the pool that their negatives come from: the batch, then the queue)."""
    own = Examples(
        *devices.replicate((features.text_embeddings, features.image_embeddings)),
        batch.image_ids,
        batch.caption_ids,
        batch.valid,
        batch.valid,
    )
    if queue is None:
        return own, own
    kept = devices.replicate(queue).examples(batch.joint_ids.shape[1], pad)
    return own, jax.tree.map(lambda *parts: jnp.concatenate(parts), own, kept)


def negatives_of(examples: Examples, pool: Examples, objective: Objective, key: Array) -> Negatives:
    """Choose as many negatives of each kind as the objective asks for."""
    loss = objective.loss
    kinds = Kinds(loss.negatives, loss.hardest_of or loss.negatives, loss.random_negatives)
    return choose_negatives(examples, pool, kinds, key)


def targets_of(
    objective: Objective,
    frozen: Frozen,
    features: Features,
    rows: Rows,
    counts: Counts,
    chunks: int,
) -> dict[str, PyTree] | None:
    """Run the teacher, if there is one, for every term of the loss that follows it."""
    teacher, devices = objective.teacher, objective.devices
    terms = active_terms(objective.loss, objective.phase, teacher is not None)
    wanted = {name: term.target for name, term in terms.items() if term.target}
    if teacher is None or not wanted:
        return None
    compress = partial(_compress, teacher, frozen.teacher)
    tokens = in_chunks(compress, features.vision_tokens, chunks, devices)

    def targets(part: Rows) -> dict[str, PyTree]:
        context = RowContext(objective, teacher, frozen.teacher, tokens, rows.ids, part, counts)
        return {name: target(context) for name, target in wanted.items()}

    return in_chunks(targets, rows, chunks, devices)


def _compress(
    model: PairScorer, params: PyTree, vision_tokens: Float[Array, "b *f n w"]
) -> Float[Array, "b m d"]:
    """Compressed tokens of a model; further layers that only another one reads stand behind its
    own in the vision tokens."""
    own = vision_tokens[..., : model.config.backbone.token_width]
    return model.bind({"params": params}).compress(own)
