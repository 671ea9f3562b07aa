"""A mesh of eight virtual devices against one device: the same step, in parts."""

import dataclasses
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from edje_jax.config.model import EdjeConfig, SimilarityPrior
from edje_jax.config.run import LossConfig, MeshConfig
from edje_jax.models.edje import Edje
from edje_jax.models.siglip import Siglip
from edje_jax.training.edje_step import (
    Frozen,
    StepSetup,
    encode,
    examples_of,
    jit_step,
)
from edje_jax.training.losses.term import Objective
from edje_jax.training.negatives import Kinds, Negatives, choose_negatives
from edje_jax.training.queue import empty_queue
from edje_jax.training.sharding import Devices, MeshError, bytes_per_device
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.types import Batch
from tests.training.test_edje_step import CONFIG, MASK, SPECIAL, deferring, make_batch

ROWS = 16
MESHES = {"8 x 1": (8, 1), "1 x 8": (1, 8), "2 x 4": (2, 4)}
EVERY_MESH = [
    "2 x 4",
    *(pytest.param(name, marks=pytest.mark.extra) for name in ("8 x 1", "1 x 8")),
]
"""Both axes at once, and, where time does not matter, each alone."""
LOSS = LossConfig(negatives=2)
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(2e-3, weight_decay=0.05))


def devices(data: int, fsdp: int) -> Devices:
    return Devices.of(MeshConfig(data, fsdp), ROWS)


def fresh(config: EdjeConfig = CONFIG) -> TrainState:
    tokens, ids = jnp.zeros((1, 4, 16)), jnp.ones((1, 3), jnp.int32)
    params = Edje(config).init(jax.random.key(0), tokens, ids)["params"]
    return init_state(jax.tree.map(lambda x: 5 * x if x.ndim == 2 else x, params), OPTIMISER)


@cache
def frozen() -> Any:
    pixels, ids = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(Siglip(CONFIG.backbone).init)(jax.random.key(7), pixels, ids)["params"]
    return jax.tree.map(np.asarray, params)


def batches(steps: int) -> list[Batch]:
    """Rows of one image twice and an unreadable one among them."""
    out = []
    for seed in range(steps):
        batch = make_batch(ROWS, seed)
        batch.image_ids[3] = batch.image_ids[11]
        batch.valid[5] = False
        out.append(batch)
    return out


def with_queue(size: int, config: EdjeConfig = CONFIG) -> TrainState:
    state = fresh(config)
    return dataclasses.replace(state, queue=empty_queue(config, size)) if size else state


@cache
def trained(
    data: int, fsdp: int, steps: int, chunks: int = 1, deferred: int = 0, queue: int = 0
) -> tuple[list[Metrics], Any]:
    """(what each step tells, the parameters after them); with deferred layers there is a teacher
    without, whose hidden states are followed too; with a queue there are random negatives and a
    similarity prior."""
    config, loss = deferring(deferred), dataclasses.replace(LOSS, hidden_states=float(deferred))
    if queue:
        loss = dataclasses.replace(loss, random_negatives=3, queue=queue)
        config = dataclasses.replace(config, similarity_prior=SimilarityPrior(0.1, 0.3))
    where = devices(data, fsdp)
    start = partial(with_queue, queue, config)
    state = where.init_sharded(start)
    setup = StepSetup(
        Objective(Edje(config), loss, "all", MASK, where, Edje(CONFIG) if deferred else None),
        Siglip(CONFIG.backbone),
        CONFIG.image,
        tuple(SPECIAL),
        seed=3,
        optimiser=OPTIMISER,
        learning_rate=optax.constant_schedule(2e-3),
        chunks=chunks,
    )
    step = jit_step(setup)
    teacher = where.put(jax.device_get(jax.jit(fresh)().params)) if deferred else None
    towers = Frozen(where.put(frozen()), teacher)
    told = []
    for batch in batches(steps):
        placed = where.batch(batch)
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, towers, placed)
        told.append(jax.device_get(metrics))
    assert step._cache_size() == 1, "a later step was compiled again"
    return told, where.fetch(state.params)


def assert_told(ours: Metrics, theirs: Metrics, rtol: float) -> None:
    assert ours.keys() == theirs.keys() >= {"loss/match", "loss/masked_lm", "grad_norm"}
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)


def test_a_program_of_the_mesh_finds_it_in_use():
    seen = []

    def program(x):
        seen.append(jax.sharding.get_abstract_mesh())
        return x

    where = devices(2, 4)
    jitted = where.jit(partial(program), out_shardings=where.rows)
    assert jitted(jnp.zeros(ROWS)).sharding == where.rows
    assert seen == [where.mesh.abstract_mesh]
    assert "jit_program" in jitted.lower(jnp.zeros(ROWS)).as_text()


@pytest.mark.parametrize("mesh", EVERY_MESH)
def test_twenty_steps_on_eight_devices_are_those_of_one(mesh):
    (one, _), (eight, _) = trained(1, 1, 20), trained(*MESHES[mesh], 20)
    assert_told(eight[0], one[0], 1e-5)
    for ours, theirs in zip(eight, one, strict=True):
        assert_told(ours, theirs, 1e-4)
    assert one[-1]["loss"] < one[0]["loss"]


@pytest.mark.extra
def test_chunks_on_a_mesh_are_the_same_steps():
    (one, _), (chunked, _) = trained(1, 1, 20), trained(2, 4, 20, chunks=2)
    assert_told(chunked[0], one[0], 1e-5)
    for ours, theirs in zip(chunked, one, strict=True):
        assert_told(ours, theirs, 1e-4)


@pytest.mark.parametrize(
    "mesh, chunks",
    [
        pytest.param("8 x 1", 1, marks=pytest.mark.extra),
        ("2 x 4", 1),
        pytest.param("1 x 8", 2, marks=pytest.mark.extra),
    ],
    ids=["data", "both", "chunks"],
)
def test_random_negatives_and_a_queue_are_the_same_on_a_mesh(mesh, chunks):
    """With a batch and a half in the queue, and the similarity prior."""
    one, eight = trained(1, 1, 4, queue=24), trained(*MESHES[mesh], 4, chunks, queue=24)
    for ours, theirs in zip(eight[0], one[0], strict=True):
        assert_told(ours, theirs, 1e-5 if theirs is one[0][0] else 1e-4)


@pytest.mark.extra
def test_deferred_layers_and_their_teacher_on_a_mesh():
    (one, _), (eight, _) = (trained(*mesh, 3, deferred=1) for mesh in ((1, 1), MESHES["2 x 4"]))
    assert {"loss/distillation", "loss/hidden_states"} <= one[0].keys()
    for ours, theirs in zip(eight, one, strict=True):
        assert_told(ours, theirs, 1e-5 if theirs is one[0] else 1e-4)


@pytest.mark.parametrize("mesh", MESHES)
def test_negatives_come_from_the_whole_batch(mesh):
    def mine(where: Devices) -> Negatives:
        @jax.jit
        def run(params, batch: Batch) -> Negatives:
            features = where.shard_rows(
                encode(Siglip(CONFIG.backbone), params, batch, CONFIG.image)
            )
            rows, pool = examples_of(batch, features, None, 0, where)
            return choose_negatives(rows, pool, Kinds(3, 4, 4), jax.random.key(1))

        return jax.device_get(run(where.put(frozen()), where.batch(batches(1)[0])))

    one, eight = mine(devices(1, 1)), mine(devices(*MESHES[mesh]))
    for ours, theirs in zip(eight, one, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # Some of them lie on other devices than the row they are negatives of.
    share = ROWS // 8
    assert (one.images // share != np.arange(ROWS)[:, None] // share).any()


def test_fsdp_divides_what_a_device_holds():
    wide = dataclasses.replace(
        CONFIG,
        joint_encoder=dataclasses.replace(
            CONFIG.joint_encoder, hidden_size=64, intermediate_size=256, vocab_size=801
        ),
    )
    state = jax.eval_shape(partial(fresh, wide))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    for data, fsdp, share in ((8, 1, 1), (2, 4, 1 / 3.3), (1, 8, 1 / 6)):
        held = bytes_per_device(devices(data, fsdp).init_sharded(partial(fresh, wide)))
        assert held <= share * whole
        assert held >= whole / fsdp


def test_loaded_parameters_land_where_fresh_ones_do():
    where = devices(2, 4)
    params = jax.tree.map(np.asarray, jax.jit(fresh)().params)
    placed = where.put(params)
    for (path, leaf), host in zip(
        jax.tree_util.tree_leaves_with_path(placed), jax.tree.leaves(params), strict=True
    ):
        assert leaf.sharding == where.sharding(path, host) and leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, host)


@pytest.mark.parametrize(
    ("mesh", "rows", "message"),
    [
        (MeshConfig(3, 4), 16, r"--mesh.data 3 --mesh.fsdp 4: 8 devices are here"),
        (MeshConfig(None, 16), 16, r"--mesh.fsdp 16: 8 devices are here"),
        (MeshConfig(), 12, r"--data.batch-size 12 cannot be cut evenly over 8 devices; make it a"),
    ],
)
def test_meshes_that_do_not_fit(mesh, rows, message):
    with pytest.raises(MeshError, match=message):
        Devices.of(mesh, rows)
