"""Captioners as teachers of an EDJE: whose tokens, scores and captions fit, and what is refused."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.debug import config as debug
from edje_jax.config.calibration import Calibration
from edje_jax.config.run import EdjeRun, LossConfig
from edje_jax.scenes.shapes import Shapes
from edje_jax.training.assemble import assemble
from edje_jax.training.edje_teacher import calibration_of
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.weights.calibration import write_calibration
from edje_jax.weights.folder import load_model
from tests.training.captioner_runs import captioner as captioner  # a fixture

LISTS = {"distillation": 0.0, "listwise_distillation": 1.0}


def student(teacher: Path, **loss) -> EdjeRun:
    """`debug` taught by a model whose backbone it takes."""
    return dataclasses.replace(
        debug,
        teacher=str(teacher),
        precision="float32",
        mesh=dataclasses.replace(debug.mesh, data=1),
        model=dataclasses.replace(debug.model, backbone=None),
        loss=LossConfig(**{"negatives": 2, "masked_lm": 0.0, "text_recovery": 0.0} | loss),
    )


@pytest.fixture(scope="module")
def tuned(captioner, tmp_path_factory) -> Path:
    """The captioner with a calibration."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(captioner / "model", folder)
    write_calibration(folder, Calibration(0.0, 4.0, -1.0, {"data": "shapes"}))
    return folder


def test_an_edje_learns_from_a_captioner_that_reads_further_layers(tuned, tmp_path):
    """The backbone runs once, here for features on disk, and each model reads its own part."""
    config = student(tuned, listwise_distillation=1.0, distillation_temperature=0.01)
    data = dataclasses.replace(config.data, limit=48, cache_features=str(tmp_path / "features"))
    task = EdjeTask(dataclasses.replace(config, data=data), tmp_path)
    assert task.backbone.config.earlier_layers == (-2,)
    assert task.model_config.backbone.earlier_layers == ()
    batch, _ = task.reader[0]
    assert batch.features.vision_tokens.shape == (16, 16, 2 * 48)
    state, told = task.step(task.init(), batch, 0)
    assert 0 < told["teacher_entropy"] <= np.log(3) + 1e-6
    assert told["loss/listwise_distillation"] > told["teacher_entropy"]
    assert told["loss/distillation"] > 0 and told["grad_norm"] > 0
    (tmp_path / "model").mkdir()
    task.export(task.fetch(state), tmp_path / "model")
    assert load_model(str(tmp_path / "model")).config == task.model_config


def test_a_captioner_s_scores_are_no_match_logits_without_a_calibration(captioner, tuned, tmp_path):
    told = (
        f"--teacher {captioner}: a captioner, whose scores are no match logits: fit its calibration"
        f" with edje tune {captioner} --data SPEC --save, or set --loss.distillation 0"
        " --loss.listwise-distillation 1"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        assemble(student(captioner), Shapes("val"), tmp_path)
    assert assemble(student(captioner, **LISTS), Shapes("val"), tmp_path).teacher
    parts = assemble(student(tuned), Shapes("val"), tmp_path)
    assert calibration_of(parts.teacher).temperature == 4.0


@pytest.mark.parametrize("lists", [{}, LISTS], ids=["pairs", "lists"])
def test_the_log_names_the_teacher_and_the_entropy_of_its_scores(lists, tuned, tmp_path, caplog):
    caplog.set_level("INFO")
    write_calibration(
        folder := shutil.copytree(tuned, tmp_path / "mixed"),
        Calibration(2.0, 4.0, -1.0, {"data": "shapes"}),
    )
    task = EdjeTask(student(folder, distillation_temperature=50.0, **lists), tmp_path / "run")
    told = f"distilling from {folder}; teacher_entropy tells what its scores at temperature 50"
    assert told in caplog.text
    # A calibration with cosines asks for them only where it is used.
    assert task._setup("all").objective.reads_similarities == (not lists)
    _, metrics = task.step(task.init(), task.reader[0][0], 0)
    assert 0.9 * np.log(3) < metrics["teacher_entropy"] <= np.log(3) + 1e-6
    assert ("loss/distillation" in metrics) == (not lists)


def test_an_edje_s_scores_are_logits_as_they_are(trained):
    model = dataclasses.replace(load_model(str(trained)), calibration=Calibration(0.0, 4.0))
    assert calibration_of(model) is None and calibration_of(None) is None


def test_states_of_a_captioner_cannot_be_followed(captioner, tmp_path):
    config = student(captioner, hidden_states=1.0, **LISTS)
    with pytest.raises(ValueError, match=r"a captioner, whose states .* --loss\.hidden-states to"):
        assemble(config, Shapes("val"), tmp_path)


def test_a_queue_has_no_tokens_of_a_teacher(captioner, tmp_path):
    with pytest.raises(ValueError, match=r"--loss\.queue 16 .*--loss\.listwise-distillation to 0"):
        EdjeTask(student(captioner, queue=16, **LISTS), tmp_path)


def test_a_temperature_is_above_0():
    with pytest.raises(ValueError, match=r"--loss\.distillation-temperature 0\.0: must be above 0"):
        LossConfig(distillation_temperature=0.0)
