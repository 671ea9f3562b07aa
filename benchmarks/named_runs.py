"""Runs on the command line, named by their setting, and a check that they have one backbone."""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edje_jax.weights.folder import Model

ROW: dict[str, Any] = {
    "nargs": "+", "action": "append", "required": True, "metavar": "NAME RUN",
    "help": "name of a setting and its runs, seed by seed; given several times",
}  # fmt: skip
"""Arguments of `add_argument` that make an option one of rows."""


def named_runs(parser: argparse.ArgumentParser, rows: list[list[str]]) -> dict[str, list[str]]:
    """{name: runs}; the program ends with an error if a row has no run, or another row's name."""
    out: dict[str, list[str]] = {}
    for name, *runs in rows:
        if not runs:
            parser.error(f"--row {name}: give a name and at least one run")
        if name in out:
            parser.error(f"--row {name}: two rows have this name; give its runs in one of them")
        out[name] = runs
    return out


def check_backbones(folders: Sequence[str], models: Sequence[Model], first: Model) -> None:
    """Make sure that models have the backbone of the first one, bit for bit.

    Raises:
        ValueError: one has another.
    """
    expected = jax.tree.leaves(first.backbone.params)
    for folder, model in zip(folders, models, strict=True):
        found = jax.tree.leaves(model.backbone.params)
        if len(found) != len(expected) or not all(map(np.array_equal, found, expected)):
            raise ValueError(f"{folder}: another backbone than that of the first run")
