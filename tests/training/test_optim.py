"""The schedules at the places that matter, AdamW against its formula, Muon against its meaning."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from edje_jax.config.run import MeshConfig, OptimConfig
from edje_jax.training.checkpoint import Checkpoints
from edje_jax.training.optim import optimiser, schedule
from edje_jax.training.sharding import Devices
from edje_jax.training.state import TrainState, apply_gradients, init_state

PUBLISHED = OptimConfig(
    lr=3e-4, schedule="exponential", warmup_steps=100, warmup_from=1e-6, epoch_decay=0.9, floor=1e-6
)


def rate(optim: OptimConfig, step: int, steps: int = 10_000, steps_per_epoch: int = 500) -> float:
    return float(schedule(optim, steps, steps_per_epoch)(jnp.int32(step)))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 1e-6),
        (50, (1e-6 + 3e-4) / 2),
        (100, 3e-4),
        (499, 3e-4),
        (500, 3e-4 * 0.9),
        (999, 3e-4 * 0.9),
        (1_000, 3e-4 * 0.9**2),
        (9_999, 3e-4 * 0.9**19),
        (500 * 60, 1e-6),  # 0.9 ** 60 of the rate is less than the floor
    ],
)
def test_the_published_schedule(step, expected):
    assert rate(PUBLISHED, step) == pytest.approx(expected, rel=1e-5)


def test_a_cosine_falls_from_the_rate_to_the_floor():
    optim = OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=10, warmup_from=0.0, floor=1e-5)
    assert rate(optim, 0, steps=110) == 0
    assert rate(optim, 5, steps=110) == pytest.approx(1e-3)
    assert rate(optim, 10, steps=110) == pytest.approx(2e-3)
    assert rate(optim, 60, steps=110) == pytest.approx((2e-3 + 1e-5) / 2, rel=1e-4)
    assert rate(optim, 110, steps=110) == pytest.approx(1e-5, rel=1e-3)
    rates = schedule(optim, 110, 1)(jnp.arange(10, 111))
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize("kind", ["exponential", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_a_run_shorter_than_the_warm_up_still_reaches_its_rate(kind, steps):
    optim = OptimConfig(lr=1e-3, schedule=kind, warmup_steps=100)
    rates = np.asarray(schedule(optim, steps, steps_per_epoch=1_000)(jnp.arange(steps)))
    assert rates[-1] == rates.max()
    np.testing.assert_allclose(rates[-1], 1e-3, rtol=1e-6)


@pytest.mark.parametrize(
    "steps, warned", [(230, True), (300, True), (304, True), (305, False), (400, False)], ids=str
)
def test_a_cosine_that_never_falls_is_warned_of(steps, warned, caplog):
    """A warm-up of 100 steps and two thirds of all held leave 300 steps nothing to fall in."""
    optim = OptimConfig(schedule="cosine", warmup_steps=100, hold=2 / 3)
    optimiser(optim, steps, steps_per_epoch=1)
    assert ("the learning rate never falls" in caplog.text) == warned
    rates = schedule(optim, steps, 1)(jnp.arange(steps))
    assert bool((np.diff(rates) < 0).any()) == (not warned)


def test_decay_reaches_biases_and_norms_too():
    """As published: every parameter shrinks, whatever its name and rank."""
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "scale": jnp.ones(())}
    optim = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.05)
    transform = optimiser(optim, steps=10, steps_per_epoch=10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    for leaf in jax.tree.leaves(optax.apply_updates(params, updates)):
        np.testing.assert_allclose(leaf, 1 - 0.1 * 0.05, rtol=1e-6)


def test_adamw_is_the_formula():
    optim = OptimConfig(lr=0.1, warmup_steps=1, warmup_from=0.1, b1=0.8, b2=0.9, weight_decay=0.05)
    transform = optimiser(optim, steps=100, steps_per_epoch=100)
    rng = np.random.default_rng(0)
    w = rng.normal(size=5)
    params, m, v = jnp.asarray(w, jnp.float32), np.zeros(5), np.zeros(5)
    state = transform.init(params)
    for t in range(1, 6):
        g = rng.normal(size=5)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        w = w - 0.1 * (m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8) + 0.05 * w)
        updates, state = transform.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, w, rtol=1e-5)


MATRIX, STEPS = (24, 40), 10
MUON = OptimConfig(
    kind="muon", lr=0.1, warmup_steps=1, warmup_from=0.1, weight_decay=0.05, schedule="cosine"
)


def parameters(seed: int) -> dict[str, dict[str, jax.Array]]:
    """A matrix that Muon takes, and three parameters that AdamW does; or their gradients."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "dense": {"kernel": draw(*MATRIX), "bias": draw(40)},
        "word": {"embedding": draw(8, 24)},
        "depthwise": {"kernel": draw(3, 3, 1, 24)},
    }


def test_muon_turns_every_direction_of_a_matrix_alike():
    """The first update has the singular vectors of the gradient, and equal singular values: their
    root mean square is that of 0.2 times the rate an entry."""
    params, gradients = parameters(0), parameters(1)
    plain = dataclasses.replace(MUON, weight_decay=0.0)
    transform = optimiser(plain, STEPS, STEPS)
    updates, _ = transform.update(gradients, transform.init(params), params)
    left, values, right = np.linalg.svd(gradients["dense"]["kernel"], full_matrices=False)
    turned = -np.asarray(updates["dense"]["kernel"]) / (0.1 * 0.2 * np.sqrt(max(MATRIX)))
    in_its_basis = left.T @ turned @ right.T
    assert values.max() / values.min() > 4
    # Newton and Schulz's five steps bring singular values near 1, and not to it.
    np.testing.assert_allclose(np.diag(in_its_basis), 1, atol=0.35)
    np.testing.assert_allclose(in_its_basis - np.diag(np.diag(in_its_basis)), 0, atol=1e-5)


def test_muon_leaves_all_but_matrices_to_adamw():
    params, gradients = parameters(0), parameters(1)
    told = {}
    for kind in ("muon", "adamw"):
        transform = optimiser(dataclasses.replace(MUON, kind=kind), STEPS, STEPS)
        told[kind], _ = transform.update(gradients, transform.init(params), params)
    for part, name in (("dense", "bias"), ("word", "embedding"), ("depthwise", "kernel")):
        np.testing.assert_allclose(told["muon"][part][name], told["adamw"][part][name], rtol=1e-5)
    assert not np.allclose(told["muon"]["dense"]["kernel"], told["adamw"]["dense"]["kernel"])


def test_an_optimiser_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match=r"--optim\.kind 'Muon': give one of adamw, muon"):
        optimiser(dataclasses.replace(MUON, kind="Muon"), STEPS, STEPS)


def test_muon_decays_matrices_as_adamw_does():
    params = parameters(0)
    transform = optimiser(MUON, STEPS, STEPS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transform.update(zeros, transform.init(params), params)
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(update, -0.1 * 0.05 * leaf, rtol=1e-5)


def test_muon_on_a_mesh_is_muon_and_its_state_survives_a_checkpoint(tmp_path):
    """Parameters cut over four devices, saved between two steps, against one device."""
    transform = optimiser(MUON, STEPS, STEPS)

    def after_two(where: Devices, between: Callable[[TrainState], TrainState]) -> PyTree:
        state = where.init_sharded(lambda: init_state(parameters(0), transform))
        step = where.jit(partial(apply_gradients, optimiser=transform))
        state = between(step(state, where.put(jax.device_get(parameters(1)))))
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == MATRIX]
        assert [leaf.addressable_shards[0].data.size for leaf in moments] == [
            math.prod(MATRIX) // where.mesh.shape["fsdp"]
        ]
        return where.fetch(step(state, where.put(jax.device_get(parameters(2)))).params)

    def through_disk(state: TrainState) -> TrainState:
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            return checkpoints.restore(state)

    alone = after_two(Devices.of(MeshConfig(1, 1), 8), lambda state: state)
    cut = after_two(Devices.of(MeshConfig(2, 4), 8), through_disk)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), cut, alone)


def test_gradients_are_clipped_only_when_asked_and_only_when_long():
    """Adam is blind to one gradient's length, so look at what the second step remembers."""
    params = jnp.zeros(2)

    def second(clip_norm: float, first: float) -> np.ndarray:
        optim = OptimConfig(lr=0.1, warmup_steps=0, weight_decay=0.0, clip_norm=clip_norm)
        transform = optimiser(optim, steps=10, steps_per_epoch=10)
        state = transform.init(params)
        _, state = transform.update(jnp.array([first, 0.0]), state, params)
        updates, _ = transform.update(jnp.array([0.5, 0.5]), state, params)
        return np.asarray(updates)

    np.testing.assert_array_equal(second(1.0, 0.5), second(0.0, 0.5))
    np.testing.assert_allclose(second(1.0, 1e3), second(0.0, 1.0), rtol=1e-5)
    assert not np.allclose(second(0.0, 1e3), second(0.0, 1.0))


def test_a_cosine_may_be_held_back():
    optim = OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=10, hold=0.5, floor=1e-5)
    rates = np.asarray(schedule(optim, 110, 1)(jnp.arange(111)))
    np.testing.assert_allclose(rates[10:66], 2e-3, rtol=1e-6)
    assert (np.diff(rates[65:]) < 0).all()
    assert rates[110] == pytest.approx(1e-5, rel=1e-3)


def test_rates_by_path():
    params = {
        "adapter": {"kernel": jnp.ones(3)},
        "joint": {"layers_0": {"kernel": jnp.ones(3)}, "layers_1": {"kernel": jnp.ones(3)}},
    }
    optim = OptimConfig(
        lr=0.1, warmup_steps=0, warmup_from=0.1, weight_decay=0.1,
        lr_scales=("adapter/=0", "layers_0=0.5", "kernel=2"),
    )  # fmt: skip
    chain = optimiser(optim, 10, 10)
    updates, _ = chain.update(params, chain.init(params), params)
    plain = optimiser(
        OptimConfig(lr=0.1, warmup_steps=0, warmup_from=0.1, weight_decay=0.1), 10, 10
    )
    whole, _ = plain.update(params, plain.init(params), params)
    assert not np.any(updates["adapter"]["kernel"])
    for name, factor in (("layers_0", 0.5), ("layers_1", 2.0)):
        expected = factor * np.asarray(whole["joint"][name]["kernel"])
        np.testing.assert_allclose(updates["joint"][name]["kernel"], expected, rtol=1e-6)
        assert np.all(expected < 0)
    wrong = optimiser(OptimConfig(lr_scales=("adaptor/=0.1",)), 10, 10)
    with pytest.raises(ValueError, match=r"adaptor/=0.1: no parameter .* adapter/kernel"):
        wrong.init(params)
    for scale in ("adapter", "adapter=fast", "(=1"):
        with pytest.raises(ValueError, match="write REGEX=FACTOR"):
            optimiser(OptimConfig(lr_scales=(scale,)), 10, 10)
