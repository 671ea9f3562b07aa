"""`tune.png`: recall against what it costs."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.cli.choice import Choice, layers, short_names
from edje_jax.evaluation.metrics import pareto_front
from edje_jax.models.token_formats import FORMATS
from edje_jax.system.files import replacing

log = logging.getLogger(__name__)

MARKS = "oD^vsP*X"
"""Marks of token formats, in the order of their table."""


def draw(choices: Sequence[Choice], front: Sequence[bool], path: Path) -> None:
    """R@1 against milliseconds per query and against bytes; a colour for each model, a mark for
    each dtype, a line along the best of the two numbers that a panel shows."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning('no %s, as matplotlib is not installed: pip install "edje-jax[eval]"', path)
        return
    figure = Figure(figsize=(10, 5), layout="constrained")
    time, size = figure.subplots(1, 2, sharey=True)
    panel(time, choices, front, [1e3 / choice.queries_per_second for choice in choices])
    panel(size, choices, front, [choice.bytes_per_picture for choice in choices])
    time.set(xlabel="ms per query, reranking alone", ylabel="R@1, mean of both ways")
    size.set(xlabel="bytes per picture")
    size.minorticks_off()
    sizes = sorted({choice.bytes_per_picture for choice in choices})
    size.set_xticks(sizes, [f"{bytes_:,}" for bytes_ in sizes])
    names = short_names([choice.model for choice in choices])
    for number, (model, name) in enumerate(names.items()):
        one = next(choice for choice in choices if choice.model == model)
        time.plot([], [], "s", color=f"C{number}", label=f"{name} (s = {layers(one)})")
    for dtype in dict.fromkeys(choice.token_dtype for choice in choices):
        time.plot([], [], mark_of(dtype), color="grey", label=dtype)
    figure.suptitle("Full colour: on the Pareto front of R@1, time and bytes", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def mark_of(dtype: str) -> str:
    """Mark of the points of a token format."""
    return MARKS[list(FORMATS).index(dtype) % len(MARKS)]


def panel(
    axes: Any, choices: Sequence[Choice], front: Sequence[bool], cost: Sequence[float]
) -> None:
    """Points of all choices at their cost, and the front of the two."""
    recall = [choice.recall for choice in choices]
    best = np.flatnonzero(pareto_front([(r, -c) for r, c in zip(recall, cost, strict=True)]))
    best = best[np.argsort(np.asarray(cost)[best])]
    axes.plot(np.asarray(cost)[best], np.asarray(recall)[best], color="grey", linewidth=1, zorder=0)
    models = list(dict.fromkeys(choice.model for choice in choices))
    for choice, x, y, shown in zip(choices, cost, recall, front, strict=True):
        axes.plot(
            x, y, mark_of(choice.token_dtype), color=f"C{models.index(choice.model)}",
            markersize=8 if shown else 5, alpha=1 if shown else 0.4,
        )  # fmt: skip
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
