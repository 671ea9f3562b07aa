"""Tiny training run for all tests that need a trained model: `debug`, forty steps.

Its length, seed and shapes are compiled into the train step, so tests that train for themselves
use the same command and find the program in the compilation cache.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import train
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import AdapterConfig
from edje_jax.models.heads.first_stage import fresh_heads
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.search.reranker import Reranker
from edje_jax.weights.edje import expected_params
from edje_jax.weights.folder import load_model, save_model

TINY = Path(__file__).parent / "goldens" / "reference_tiny"
STEPS = 40
COMMAND = (
    "debug", "--steps", str(STEPS), "--model.backbone", str(TINY / "siglip"),
    "--precision", "float32", "--mesh.data", "1",
)  # fmt: skip


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run; to be read only."""
    # A session's fixture lives once in every conftest that imports it; the run shall be one.
    workdir = tmp_path_factory.getbasetemp() / "trained"
    if not workdir.exists():
        assert train.main([*COMMAND, "--workdir", str(workdir)]) == 0
    return workdir


def save_with_heads(trained: Path, stage: FirstStageConfig, out: Path) -> Path:
    """Write a model folder: a run's model with first-stage heads of random weights."""
    model, rng = load_model(str(trained)), np.random.default_rng(0)
    config = dataclasses.replace(model.config, first_stage=stage)
    heads = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        fresh_heads(config, jax.random.key(0)),
    )
    out.mkdir()
    save_model(out, dataclasses.replace(model, config=config, heads=heads), "A card.\n")
    return out


@pytest.fixture(scope="session")
def coded(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of that run with codes of 8 and of 64 bits; to be read only."""
    out = tmp_path_factory.getbasetemp() / "coded"
    return out if out.exists() else save_with_heads(trained, FirstStageConfig((8, 64)), out)


@pytest.fixture(scope="session")
def captioner(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of a captioner of large random weights, which reads a grid of twice the side
    on that run's backbone; to be read only."""
    out = tmp_path_factory.getbasetemp() / "drawn_captioner"
    if not out.exists():
        model, rng = load_model(str(trained)), np.random.default_rng(0)
        backbone = model.config.backbone
        config = dataclasses.replace(
            model.config,
            backbone=dataclasses.replace(backbone, earlier_layers=backbone.layers_for(2)),
            adapter=AdapterConfig("local", intermediate_size=32, upsampling=2),
            captioner=CaptionerConfig(),
        )
        params = jax.tree.map(
            lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32), expected_params(config)
        )
        with_layers = dataclasses.replace(model.backbone, config=config.backbone)
        out.mkdir()
        made = dataclasses.replace(model, config=config, params=params, backbone=with_layers)
        save_model(out, made, "A card.\n")
    return out


@pytest.fixture(scope="session")
def video_model(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of that run's model as it reads videos, four frames of each, for which its
    table of positions has rows enough; to be read only."""
    out = tmp_path_factory.getbasetemp() / "drawn_video_model"
    if not out.exists():
        model = load_model(str(trained))
        config = dataclasses.replace(model.config, video=VideoConfig(FrameSampling(4)))
        assert config.num_positions <= config.joint_encoder.max_position_embeddings
        out.mkdir()
        save_model(out, dataclasses.replace(model, config=config), "A card.\n")
    return out


@pytest.fixture(scope="session", params=[0, 1], ids=["published", "deferred"])
def runtime(trained: Path, request: pytest.FixtureRequest) -> JaxRuntime:
    """The runtime of the model of that run, and of one with a deferred layer."""
    runtime = Reranker.from_pretrained(trained, precision="float32").runtime
    joint = dataclasses.replace(runtime.config.joint_encoder, deferred_layers=request.param)
    config = dataclasses.replace(runtime.config, joint_encoder=joint)
    return dataclasses.replace(runtime, config=config)
