"""Whole tasks as the loop drives them: eight devices take one's steps, nothing crosses unasked.

Covers training/tasks/edje.py.
"""

import dataclasses
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.debug import config as debug
from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.config.run import BackboneRun, DataConfig, MeshConfig, OptimConfig
from edje_jax.training.loop import Task
from edje_jax.training.sharding import bytes_per_device
from edje_jax.training.state import Metrics, TrainState
from edje_jax.training.tasks.backbone import BackboneTask
from edje_jax.training.tasks.edje import EdjeTask
from tests.small_runs import TINY
from tests.training.test_sharding import EVERY_MESH, MESHES

STEPS = 20
BACKBONE = BackboneRun(
    steps=STEPS,
    data=DataConfig(train="shapes:train", batch_size=16),
    vision=VisionConfig(32, 64, 2, 4),
    text=TextConfig(120, 32, 64, 1, 4, max_position_embeddings=24, projection_size=32),
    optim=OptimConfig(lr=2e-3, schedule="cosine", warmup_steps=2, clip_norm=1.0),
    patch_naming=2.0,
    patch_sharpness=(5.0, 20.0),
    precision="float32",
)
EDJE = dataclasses.replace(
    debug,
    steps=4,
    precision="float32",
    model=dataclasses.replace(debug.model, backbone=str(TINY / "siglip")),
    loss=dataclasses.replace(debug.loss, masked_lm_first=0.5),
    mesh=MeshConfig(2, 4),
)


def taken(task: Task, steps: int) -> tuple[list[Metrics], TrainState]:
    """Metrics and state of the first steps; arrays reach devices only where the code says so."""
    state, told = task.init(), []
    for number in range(steps):
        batch, bad = task.reader[number]
        assert not bad
        with jax.transfer_guard("disallow"):
            state, metrics = task.step(state, batch, number)
        told.append(jax.device_get(metrics))
    return told, state


@cache
def backbone_steps(data: int, fsdp: int, workdir: Path) -> list[Metrics]:
    config = dataclasses.replace(BACKBONE, mesh=MeshConfig(data, fsdp))
    return taken(BackboneTask(config, workdir), STEPS)[0]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Folder in which the tokenizer is kept, once for all meshes."""
    return tmp_path_factory.mktemp("backbone")


@pytest.mark.parametrize("mesh", EVERY_MESH)
def test_a_backbone_on_eight_devices_takes_the_steps_of_one(mesh, workdir):
    one, eight = backbone_steps(1, 1, workdir), backbone_steps(*MESHES[mesh], workdir)
    assert {"loss/sigmoid", "loss/patch_naming", "grad_norm"} <= one[0].keys()
    for number, (ours, theirs) in enumerate(zip(eight, one, strict=True)):
        for name in theirs:
            rtol = 1e-4 if number else 1e-5
            np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)
    assert one[-1]["loss"] < 0.95 * one[0]["loss"]


def test_a_backbone_is_held_in_parts(workdir):
    whole, parts = (
        BackboneTask(dataclasses.replace(BACKBONE, mesh=MeshConfig(*mesh)), workdir).init()
        for mesh in ((1, 1), (1, 8))
    )
    assert bytes_per_device(parts) <= bytes_per_device(whole) / 6


def test_both_phases_of_a_run_send_what_they_say_and_compile_once(tmp_path):
    task = EdjeTask(EDJE, tmp_path)
    told, state = taken(task, EDJE.steps)
    assert ["loss/match" in metrics for metrics in told] == [False, False, True, True]
    assert [step._cache_size() for step in task._steps.values()] == [1, 1]
    # The guard sees what is sent unasked: the batch as it was read.
    batch, _ = task.reader[0]
    with pytest.raises(Exception, match="transfer"), jax.transfer_guard("disallow"):
        task._steps["all"](state, task.frozen, batch)


@pytest.mark.extra
def test_layers_as_a_loop_take_the_same_steps(workdir, tmp_path):
    assert not BackboneTask(BACKBONE, workdir).model.scan
    task = BackboneTask(dataclasses.replace(BACKBONE, scan_layers=True), workdir)
    assert task.model.scan
    told, _ = taken(task, 3)
    for ours, theirs in zip(told, backbone_steps(1, 1, workdir), strict=False):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)
    edje = EdjeTask(dataclasses.replace(EDJE, scan_layers=True), tmp_path)
    assert edje.model.scan and edje.backbone.scan
