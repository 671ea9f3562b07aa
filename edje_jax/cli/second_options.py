"""Options of a second model, `--then` and those beside it, checked before anything is opened."""

from dataclasses import fields
from typing import Any

from edje_jax.cli.program import UsageError


def check_then(options: Any, *others: str) -> None:
    """Refuse options of a second model that are out of range, or without `--then`; `others` are
    those that a command has beside `then_k`, `then_weight` and `then_caption_score`.

    Raises:
        UsageError: some are.
    """
    names = ("then_k", "then_weight", "then_caption_score", *others)
    defaults = {one.name: one.default for one in fields(options)}
    given = [name for name in names if getattr(options, name) != defaults[name]]
    if given and options.then is None:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"{flags}: of a second model; give --then as well")
    if options.then_k < 1:
        raise UsageError(f"--then-k {options.then_k}: the least is 1")
    weight = options.then_weight
    if weight is not None and not 0 <= weight <= 1:
        raise UsageError(f"--then-weight {weight:g}: give a number from 0 to 1")
