"""Training tasks by name.

A further task is a file in this folder and a line in `TASKS`, and its settings a class of
`config.run` in `RUNS` there.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edje_jax.config.run import RunConfig
from edje_jax.training.loop import Task
from edje_jax.training.tasks.backbone import BackboneTask
from edje_jax.training.tasks.edje import EdjeTask

TASKS: dict[str, Callable[[Any, Path], Task]] = {"edje": EdjeTask, "backbone": BackboneTask}
"""Makers of tasks, by the name that a run's config.json carries as "task"."""


def make_task(run: RunConfig, workdir: Path) -> Task:
    """The training task that a run's settings describe.

    Raises:
        FileNotFoundError, ValueError: the data or a model that the run names cannot be opened.
    """
    return TASKS[run.task](run, workdir)
