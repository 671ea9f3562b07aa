"""The train step of an EDJE: pure, top-level, jitted by its task.

The frozen backbone runs once per image; the same features feed the student, the teacher and the
choice of negatives. Negatives come from the whole batch, on however many devices it lies and in
however many chunks it is worked through, and from the queue if there is one: embeddings and
compressed tokens are sent for that, vision tokens never.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise
from edje_jax.models.edje import Edje
from edje_jax.models.towers import DualTower
from edje_jax.training.negatives import Examples, Kinds, choose_negatives, pair_similarities
from edje_jax.training.objective import (
    Counts,
    Objective,
    Rows,
    Taught,
    choose_masked,
    match_pairs,
    own_tokens,
    text_states,
)
from edje_jax.training.queue import Queue, push
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, apply_gradients
from edje_jax.types import Batch, Features


class Frozen(NamedTuple):
    """Parameters that a step reads and does not change."""

    backbone: PyTree
    teacher: PyTree | None


def edje_train_step(
    state: TrainState,
    frozen: Frozen,
    batch: Batch,
    *,
    objective: Objective,
    backbone: DualTower,
    teacher: Edje | None,
    chunks: int,
    recipe: ImageRecipe,
    special_ids: Sequence[int],
    seed: int,
    optimiser: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    ema: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Train for one step on one batch; every random draw is a function of (seed, step).

    With `chunks` > 1 the batch is worked through in so many parts, for the same gradients in less
    memory. Negatives and masked pieces do not depend on it; what dropout drops does.
    """
    loss, devices = objective.loss, objective.devices
    pad = objective.model.config.joint_encoder.pad_token_id
    features = batch.features or in_chunks(
        lambda part: encode(backbone, frozen.backbone, part, recipe), batch, chunks, devices
    )
    of_step = jax.random.fold_in(jax.random.key(seed), state.step)
    dropout, masking = jax.random.split(of_step)
    examples, pool = examples_of(batch, features, state.queue, pad, devices)
    kinds = Kinds(loss.negatives, loss.hardest_of or loss.negatives, loss.random_negatives)
    negatives = choose_negatives(examples, pool, kinds, jax.random.fold_in(of_step, 2))
    masked = choose_masked(
        batch.joint_ids, batch.valid, loss.mask_probability, special_ids, masking
    )
    rows = Rows(
        jnp.arange(len(batch.valid)), batch.joint_ids, masked, batch.valid,
        features.text_embeddings, negatives,
    )  # fmt: skip
    if any(m is not None and m.config.similarity_prior for m in (objective.model, teacher)):
        rows = rows._replace(similarities=pair_similarities(examples, pool, negatives))
    if teacher is not None and objective.phase == "all":
        rows = rows._replace(
            taught=teach(teacher, frozen.teacher, features, rows, chunks, objective)
        )
    share = partial(
        objective.share,
        ids=batch.joint_ids,
        counts=Counts.of(rows, objective.auxiliary_stride),
        queue=state.queue,
    )
    compress = partial(_compress, objective.model)
    gradients, metrics, tokens = gradients_of(
        share, compress, state.params, features.vision_tokens, rows, dropout, chunks, devices
    )
    metrics["grad_norm"] = optax.tree.norm(gradients)
    metrics["lr"] = jnp.asarray(learning_rate(state.step))
    after = apply_gradients(state, gradients, optimiser, ema)
    if state.queue is not None:
        kept = push(state.queue, batch, features, tokens, pad)
        after = dataclasses.replace(after, queue=kept)
    return after, metrics


def examples_of(
    batch: Batch, features: Features, queue: Queue | None, pad: int, devices: Devices
) -> tuple[Examples, Examples]:
    """(the batch's rows, the pool that their negatives come from: the batch, then the queue)."""
    own = Examples(
        *devices.gather((features.text_embeddings, features.image_embeddings)),
        batch.image_ids,
        batch.caption_ids,
        batch.valid,
        batch.valid,
    )
    if queue is None:
        return own, own
    kept = devices.gather(queue).examples(batch.joint_ids.shape[1], pad)
    return own, jax.tree.map(lambda *parts: jnp.concatenate(parts), own, kept)


def encode(backbone: DualTower, params: PyTree, batch: Batch, recipe: ImageRecipe) -> Features:
    """The one pass of the frozen backbone."""
    assert batch.images is not None
    image = backbone.bind({"params": params}).encode_image(normalise(batch.images, recipe))
    text = backbone.bind({"params": params}).encode_text(batch.backbone_ids)
    return Features(image.tokens, image.embedding, text)


def teach(
    teacher: Edje,
    params: PyTree,
    features: Features,
    rows: Rows,
    chunks: int,
    objective: Objective,
) -> Taught:
    """A teacher's match logits of the batch's pairs, and its states of the captions, as far as they
    are asked for."""
    loss, devices = objective.loss, objective.devices
    if not (loss.distillation > 0 or loss.hidden_states > 0):
        return Taught(None, None)
    compress = partial(_compress, teacher, params)
    tokens = in_chunks(compress, features.vision_tokens, chunks, devices)
    match = partial(match_pairs, teacher, params, tokens, ids=rows.ids, devices=devices)
    shared = min(m.config.joint_encoder.online_layers for m in (teacher, objective.model))

    def states(part: Rows) -> Array:
        return text_states(teacher, params, part.ids, own_tokens(tokens, part, devices), shared)

    return Taught(
        in_chunks(match, rows, chunks, devices) if loss.distillation > 0 else None,
        in_chunks(states, rows, chunks, devices) if loss.hidden_states > 0 else None,
    )


def gradients_of(
    share: Callable[..., tuple[Array, Metrics]],
    compress: Callable[[PyTree, Array], Array],
    params: PyTree,
    vision_tokens: Float[Array, "b n w"],
    rows: Rows,
    dropout: Array,
    chunks: int,
    devices: Devices,
) -> tuple[PyTree, Metrics, Float[Array, "b m d"]]:
    """(gradients, what to tell, compressed tokens) of the whole batch.

    In chunks, as in the gradient cache of arXiv 2101.06983: every row's compressed tokens are made
    first, without gradients. Then each chunk's losses give gradients of the parameters and of all
    those tokens, as its negatives lie in other chunks too. These last go back through the adapter,
    a chunk at a time.
    """
    if chunks == 1:

        def whole(params: PyTree) -> tuple[Array, tuple[Metrics, Array]]:
            tokens = devices.split(compress(params, vision_tokens))
            loss, metrics = share(params, tokens, rows, dropout=dropout)
            return loss, (metrics, tokens)

        gradients, (metrics, tokens) = jax.grad(whole, has_aux=True)(params)
        return gradients, metrics, tokens

    tokens = in_chunks(partial(compress, params), vision_tokens, chunks, devices)
    tokens = tokens.astype(jnp.float32)  # As are the sums of their gradients

    def of_losses(part: Rows, number: Array) -> PyTree:
        key = jax.random.fold_in(dropout, number)
        return jax.grad(share, argnums=(0, 1), has_aux=True)(params, tokens, part, dropout=key)

    def of_adapter(pictures: Array, slope: Array) -> PyTree:
        made, back = jax.vjp(lambda params: compress(params, pictures), params)
        return back(slope.astype(made.dtype))[0]

    numbers = jnp.arange(chunks)
    (gradients, slopes), metrics = _summed(of_losses, devices.cut(rows, chunks), numbers)
    more = _summed(of_adapter, *devices.cut((vision_tokens, slopes), chunks))
    return jax.tree.map(jnp.add, gradients, more), metrics, tokens


def _summed(function: Callable, *chunks: PyTree) -> PyTree:
    """The sum of what a function gives for each chunk, one at a time."""
    one = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], chunks))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    return jax.lax.scan(
        lambda sums, chunk: (jax.tree.map(jnp.add, sums, function(*chunk)), None), zeros, chunks
    )[0]


def in_chunks(function: Callable, rows: PyTree, chunks: int, devices: Devices) -> PyTree:
    """`function` of rows, so many at a time; the result's rows stand as if it were called once."""
    if chunks == 1:
        return devices.split(function(rows))
    return devices.join(jax.lax.map(function, devices.cut(rows, chunks)))


def _compress(model: Edje, params: PyTree, vision_tokens: Array) -> Array:
    return model.bind({"params": params}).compress(vision_tokens)
