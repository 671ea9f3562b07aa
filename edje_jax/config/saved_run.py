"""Settings of a run as its config.json keeps them, written and read back."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from edje_jax.config.first_stage_run import (
    TEMPERATURE,
    TEMPERATURE_OF_SEVERAL,
    FirstStageRun,
)
from edje_jax.config.model import to_dict
from edje_jax.config.run import BackboneRun, EdjeRun, RunConfig
from edje_jax.system.files import read_json

RUNS: dict[str, type[RunConfig]] = {run.task: run for run in (EdjeRun, BackboneRun, FirstStageRun)}
"""Kinds of runs by the name of their task."""


def run_to_dict(run: RunConfig) -> dict[str, Any]:
    """Settings of a run as JSON-ready nested dicts, with the name of its task: config.json."""
    return {"task": run.task, **to_dict(run)}


def read_run(path: Path) -> RunConfig:
    """Settings of a run from its config.json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON object, or not of a run that this version knows.
    """
    raw = read_json(path)
    try:
        return run_from_dict(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def run_from_dict(raw: dict[str, Any]) -> RunConfig:
    """Settings of a run from the dict that `run_to_dict` made; missing fields, which are newer than
    the file, have their defaults.

    Files written before tasks had names are recognised by "model", which only an EDJE's have.

    Raises:
        ValueError: this version knows no task of that name, or a value is out of range.
    """
    task = raw.get("task") or ("edje" if "model" in raw else "backbone")
    if task not in RUNS:
        raise ValueError(
            f'a run of the task "{task}", and this version of edje-jax knows {", ".join(RUNS)};'
            " install the one that the run was started with"
        )
    return _from_dict(RUNS[task], with_one_temperature(raw))


def with_one_temperature(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, of which a first stage's teachers have one temperature.

    Older files have the default's value in place of None, and some have a second setting for
    several teachers.
    """
    loss, teacher = raw.get("loss", {}), raw.get("teacher")
    if raw.get("task") != FirstStageRun.task or "temperature" not in loss:
        return raw
    has_list = isinstance(teacher, list | tuple)
    if has_list and "temperature_of_several" not in loss:
        return raw
    name, default = "temperature", TEMPERATURE
    if has_list and len(teacher) > 1:
        name, default = "temperature_of_several", TEMPERATURE_OF_SEVERAL
    value = None if loss[name] == default else loss[name]
    rest = {name: each for name, each in loss.items() if name != "temperature_of_several"}
    return raw | {"loss": rest | {"temperature": value}}


def _from_dict(kind: Any, raw: dict[str, Any]) -> Any:
    """Config dataclass from the dict that `to_dict` made; JSON has lists for tuples."""
    hints = get_type_hints(kind)
    values = {}
    for each in dataclasses.fields(kind):
        if each.name in raw:
            hint, value = hints[each.name], given(each.name, raw[each.name], each.default)
            if dataclasses.is_dataclass(hint):
                value = _from_dict(hint, value)
            values[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def given(name: str, value: Any, default: Any) -> Any:
    """A setting of a config.json, as it is written today.

    Files of before "not given" was null have "" or 0 for it, or -1 where 0 is a value; files of
    before the shipped backbone had a name have its path, which may be of another installation;
    files of before a run could have several teachers have a name of one, or null.
    """
    if name == "teacher" and isinstance(default, Sequence):
        return [value] if value and isinstance(value, str) else value or []
    if name == "backbone" and str(value).endswith("/edje_jax/assets/shapes_backbone"):
        elsewhere = Path(value).is_dir() and not Path(value).samefile(_SHIPPED_BACKBONE)
        return value if elsewhere else "shapes-backbone"
    if default is not None or isinstance(value, bool):
        return value
    return None if value in ("", _NOT_GIVEN.get(name, 0)) else value


_NOT_GIVEN = {"deferred_layers": -1, "process_id": -1}
_SHIPPED_BACKBONE = Path(__file__).parents[1] / "assets" / "shapes_backbone"
