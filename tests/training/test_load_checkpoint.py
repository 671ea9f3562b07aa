"""The model of a training checkpoint, with what the run took over from --init."""

import dataclasses
import json
import shutil

import jax
import numpy as np

from edje_jax.cli import edje
from edje_jax.config.run import EdjeRun, ModelSpec
from edje_jax.config.saved_run import read_run, run_to_dict
from edje_jax.weights.folder import load_model
from tests.small_runs import coded as coded  # fixtures
from tests.small_runs import trained as trained


def test_a_checkpoint_of_a_fine_tuned_model_keeps_its_heads(trained, coded, tmp_path):
    run, workdir = read_run(trained / "config.json"), tmp_path / "run"
    assert isinstance(run, EdjeRun)
    shutil.copytree(trained / "checkpoints", workdir / "checkpoints")
    tuned = dataclasses.replace(run, init=str(coded), model=ModelSpec())
    (workdir / "config.json").write_text(json.dumps(run_to_dict(tuned)))
    edje.main(["convert", str(workdir), str(tmp_path / "out"), "--to", "edje"])
    model, before = load_model(str(tmp_path / "out")), load_model(str(coded))
    assert model.config.first_stage == before.config.first_stage is not None
    jax.tree.map(np.testing.assert_array_equal, model.heads, before.heads)
