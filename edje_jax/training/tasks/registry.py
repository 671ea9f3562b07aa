"""Training tasks by name.

A further task is a file in this folder with a `TASK`, called as the class of its settings in
`config.run` names it.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from edje_jax.config.run import RunConfig
from edje_jax.training.loop import Task


def find_task(name: str) -> Callable[[Any, Path], Task]:
    """Maker of a task from settings and workdir, by the name that config.json carries as "task"."""
    return import_module(f"edje_jax.training.tasks.{name}").TASK


def make_task(run: RunConfig, workdir: Path) -> Task:
    """Make the training task that a run's settings describe.

    Raises:
        FileNotFoundError, ValueError: the data or a model that the run names cannot be opened.
    """
    return find_task(run.task)(run, workdir)
