"""Settings of runs as config.json keeps them: there and back, older files, unknown tasks.

Covers config/first_stage_run.py, config/saved_run.py and training/tasks/registry.py.
"""

import json

import pytest

from edje_jax.cli.named_configs import config_names, load_config
from edje_jax.config.first_stage_run import FirstStageLoss, FirstStageRun
from edje_jax.config.run import BackboneRun, DataConfig, EdjeRun, LossConfig, OptimConfig, RunConfig
from edje_jax.config.saved_run import RUNS, read_run, run_from_dict, run_to_dict
from edje_jax.training.tasks.registry import find_task

TUPLES = {
    "edje": EdjeRun(optim=OptimConfig(lr_scales=("joint_encoder=0.1",)), seed=3),
    "backbone": BackboneRun(patch_sharpness=(5.0, 20.0), data=DataConfig(batch_size=7)),
}


def in_json(run: RunConfig) -> dict:
    return json.loads(json.dumps(run_to_dict(run)))


@pytest.mark.parametrize(
    "run", [*TUPLES.values(), *map(load_config, config_names())], ids=[*TUPLES, *config_names()]
)
def test_a_run_comes_back_from_json(run):
    again = run_from_dict(in_json(run))
    assert type(again) is type(run) and again == run
    assert in_json(run)["task"] == run.task


@pytest.mark.parametrize("run", TUPLES.values(), ids=TUPLES)
def test_a_run_from_before_tasks_had_names_is_told_by_its_fields(run):
    older = in_json(run)
    del older["task"], older["profile"]
    assert run_from_dict(older) == run


def test_a_file_that_says_not_given_as_files_did_before_is_read_as_none():
    older = in_json(EdjeRun())
    older |= {"workdir": "", "steps": 0, "process_id": -1, "num_processes": 0, "teacher": ""}
    older["data"] |= {"val": "", "limit": 0}
    older["model"] |= {"token_layer": 0, "deferred_layers": -1, "online_vision": ""}
    older["model"]["adapter"] |= {"kind": "", "num_tokens": 0}
    assert run_from_dict(older) == EdjeRun()


def test_values_that_look_like_not_given_are_kept_where_they_are_values():
    older = in_json(EdjeRun())
    older |= {"process_id": 0, "seed": 0}
    older["model"] |= {"deferred_layers": 0, "similarity_prior": False, "token_layer": -1}
    read = run_from_dict(older)
    assert isinstance(read, EdjeRun)
    assert (read.process_id, read.seed) == (0, 0)
    spec = read.model
    assert (spec.deferred_layers, spec.similarity_prior, spec.token_layer) == (0, False, -1)


def test_a_first_stage_may_have_several_teachers_and_older_files_one_or_null():
    raw = in_json(FirstStageRun(teacher=("runs/large", "runs/captioner")))
    assert raw["teacher"] == ["runs/large", "runs/captioner"]
    assert run_from_dict(raw).teacher == ("runs/large", "runs/captioner")
    assert run_from_dict(raw | {"teacher": "runs/large"}).teacher == ("runs/large",)
    assert run_from_dict(raw | {"teacher": None}) == FirstStageRun()


@pytest.mark.parametrize(
    ("teacher", "loss", "expected"),
    [
        ("runs/large", {"temperature": 4.0}, None),
        (None, {"temperature": 2.0}, 2.0),
        (["a"], {"temperature": 2.0, "temperature_of_several": 0.5}, 2.0),
        (["a", "b"], {"temperature": 4.0, "temperature_of_several": 0.5}, None),
        (["a", "b"], {"temperature": 4.0, "temperature_of_several": 0.1}, 0.1),
        (["a", "b"], {"temperature": 4.0}, 4.0),  # As files are written today
        (["a"], {"temperature": 4.0}, 4.0),
    ],
)
def test_a_first_stage_has_one_temperature_and_older_files_two(teacher, loss, expected):
    raw = in_json(FirstStageRun()) | {"teacher": teacher}
    raw["loss"] |= loss
    read = run_from_dict(raw)
    assert isinstance(read, FirstStageRun) and read.loss.temperature == expected
    assert "temperature_of_several" not in in_json(read)["loss"]


def test_the_default_temperature_depends_on_how_many_teachers_there_are():
    counts = (0, 1, 2, 3)
    unsaid = [FirstStageLoss().with_temperature(count).temperature for count in counts]
    assert unsaid == [4.0, 4.0, 0.5, 0.5]
    said = FirstStageLoss(temperature=3.0)
    assert all(said.with_temperature(count) == said for count in counts)


@pytest.mark.parametrize("name", ["temperature", "cosine_temperature"])
def test_a_temperature_of_the_first_stage_is_above_0(name):
    flag = f"--loss.{name.replace('_', '-')}"
    with pytest.raises(ValueError, match=f"{flag} 0.0: give more than 0"):
        FirstStageLoss(**{name: 0.0})


def test_every_kind_of_run_has_a_task():
    assert all(callable(find_task(name)) for name in RUNS)
    assert all(run.task == name for name, run in RUNS.items())


def test_a_negative_weight_of_a_loss_is_refused():
    with pytest.raises(ValueError, match=r"--loss\.masked-lm -0\.5: the least is 0"):
        LossConfig(masked_lm=-0.5)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"task": "dance"},
            'a run of the task "dance", and this version .* knows edje, backbone, first_stage;',
        ),
        ({"steps": -1}, "--steps -1: the least is 1"),
    ],
)
def test_a_file_that_cannot_be_a_run_is_named(change, told, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(in_json(EdjeRun()) | change))
    with pytest.raises(ValueError, match=rf"^{path}: {told}"):
        read_run(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_run(tmp_path / "config.json")
