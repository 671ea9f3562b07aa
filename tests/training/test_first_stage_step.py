"""Train step of the first-stage heads: losses against NumPy, and a mesh against one device.

Covers training/losses/first_stage/code_contrastive.py, training/losses/first_stage/code_cosine.py,
training/losses/first_stage/code_distillation.py, training/losses/first_stage/code_query.py,
training/losses/first_stage/context.py, training/losses/first_stage/contrastive.py,
training/losses/first_stage/distillation.py and training/losses/first_stage/order.py.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.first_stage_run import FirstStageLoss
from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import MeshConfig
from edje_jax.models.heads.first_stage import fresh_heads
from edje_jax.training.embedding_batches import Candidates, EmbeddedPairs, EmbeddingBatch, Taught
from edje_jax.training.first_stage_step import FirstStageSetup, first_stage_train_step
from edje_jax.training.losses.first_stage.context import (
    contrastive,
    products_by_length,
    signs,
    similarities_by_length,
)
from edje_jax.training.sharding import Devices
from edje_jax.training.state import TrainState, init_state

ROWS, WIDTH, STRIDE, COUNT = 16, 128, 2, 3
CONFIG = EdjeConfig(first_stage=FirstStageConfig((8, 16, 32)))
EVERY = FirstStageLoss(order=0.5, code_distillation=0.5, temperature=2.0, teacher_stride=STRIDE)
OPTIMISER = optax.adam(1e-3)


def unit(*shape: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def make_batch() -> EmbeddingBatch:
    def candidates(seed: int) -> Candidates:
        shape = (ROWS // STRIDE, COUNT)
        scores = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        return Candidates(unit(*shape, WIDTH, seed=seed), None, scores, np.ones(shape, bool))

    ids = np.arange(ROWS, dtype=np.int32)
    ids[3] = ids[2]  # Two captions of one image
    images = unit(ROWS, WIDTH, seed=0)
    texts = 0.2 * images + unit(ROWS, WIDTH, seed=1)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    pairs = EmbeddedPairs(
        images, None, texts, ids, np.arange(ROWS, dtype=np.int32), np.ones(ROWS, bool)
    )
    return EmbeddingBatch(pairs, Taught(candidates(2), candidates(3)))


def setup(data: int = 1, fsdp: int = 1, loss: FirstStageLoss = EVERY) -> FirstStageSetup:
    devices = Devices.of(MeshConfig(data, fsdp), ROWS, STRIDE)
    return FirstStageSetup(
        CONFIG.first_stage, loss, devices, OPTIMISER, optax.constant_schedule(1e-3)
    )


def fresh() -> TrainState:
    params = {
        "heads": fresh_heads(CONFIG, jax.random.key(0)),
        "scales": {"embeddings": jnp.log(20.0), "codes": jnp.full((3,), jnp.log(10.0))},
    }
    return init_state(params, OPTIMISER)


def taken(made: FirstStageSetup, steps: int = 1):
    state = made.devices.init_sharded(fresh)

    step, metrics = jax.jit(partial(first_stage_train_step, setup=made)), {}
    pairs, taught = make_batch()
    batch = made.devices.put_on_all(pairs), made.devices.batch(taught)
    for _ in range(steps):
        # Virtual devices wait for each other: one step at a time.
        state, metrics = jax.block_until_ready(step(state, *batch))
    return jax.device_get((state, metrics))


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def test_infonce_equals_a_plain_loop_and_masks_equal_images():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 4)).astype(np.float32)
    positive = np.eye(4, dtype=bool)
    positive[0, 2] = positive[2, 0] = True
    valid = np.array([True, True, True, False])
    total = 0.0
    for i in range(3):
        kept = [j for j in range(3) if j == i or not positive[i, j]]
        total -= np.log(softmax(logits[i, kept])[kept.index(i)])
    found = contrastive(jnp.asarray(logits), jnp.asarray(positive), jnp.asarray(valid))
    np.testing.assert_allclose(found, total / 3, rtol=1e-6)


def test_products_of_every_length_are_those_of_the_beginnings():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(n, 32)).astype(np.float32) for n in (3, 4))
    found = products_by_length("ik,jk->ij", jnp.asarray(a), jnp.asarray(b), (8, 16, 32))
    for one, bits in zip(found, (8, 16, 32), strict=True):
        np.testing.assert_allclose(one, a[:, :bits] @ b[:, :bits].T, rtol=1e-5)
    codes = signs(jnp.asarray(a))
    similar = similarities_by_length("ik,jk->ij", codes, codes, (8, 32))
    np.testing.assert_array_equal(np.diagonal(similar, axis1=1, axis2=2), np.ones((2, 3)))


def test_signs_have_the_gradient_of_tanh():
    x = jnp.array([-2.0, -0.1, 0.0, 0.3])
    np.testing.assert_array_equal(signs(x), [-1.0, -1.0, -1.0, 1.0])
    slopes = jax.grad(lambda x: signs(x).sum())(x)
    np.testing.assert_allclose(slopes, 1 - np.tanh(np.asarray(x)) ** 2, rtol=1e-6)


def test_distillation_follows_both_directions_of_the_definition():
    _, metrics = taken(setup())
    batch, total = make_batch(), 0.0
    for queries, each in (
        (batch.pairs.texts, batch.taught.images),
        (batch.pairs.images, batch.taught.captions),
    ):
        student = 20 * np.einsum("re,rce->rc", queries[::STRIDE], each.embeddings)
        total -= (softmax(each.scores / 2) * np.log(softmax(student))).sum(axis=1).mean() / 2
    np.testing.assert_allclose(metrics["loss/distillation"], total, rtol=1e-4)
    for name in ("contrastive", "order", "code_contrastive", "code_query", "code_cosine"):
        assert metrics[f"loss/{name}"] > 0
    assert 0 < metrics["teacher_entropy"] < np.log(COUNT)


def test_a_loss_of_weight_0_is_not_computed():
    alone = FirstStageLoss(**dict.fromkeys(FirstStageLoss.weights(), 0.0) | {"contrastive": 1.0})
    alone = dataclasses.replace(alone, teacher_stride=STRIDE).with_temperature(1)
    _, metrics = taken(setup(loss=alone))
    assert [name for name in metrics if name.startswith("loss/")] == ["loss/contrastive"]


@pytest.mark.parametrize("mesh", [pytest.param((8, 1), marks=pytest.mark.extra), (2, 4)])
def test_a_mesh_takes_the_step_of_one_device(mesh):
    state, metrics = taken(setup(), steps=3)
    shared, theirs = taken(setup(*mesh), steps=3)
    for name, value in metrics.items():
        np.testing.assert_allclose(theirs[name], value, rtol=2e-4, atol=1e-6, err_msg=name)
    for ours, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(shared.params), strict=True
    ):
        np.testing.assert_allclose(other, ours, rtol=1e-3, atol=2e-4)


def test_the_heads_learn_the_batch():
    before, after = (taken(setup(), steps)[1] for steps in (1, 40))
    for name in ("loss/contrastive", "loss/code_contrastive", "loss/distillation"):
        assert after[name] < before[name], name
