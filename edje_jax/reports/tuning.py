"""Tables of `edje tune`, and its files: `tune.json`, and `tune.png`, recall against cost."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.retrieval import DIRECTIONS
from edje_jax.evaluation.tuning import TuneResult, on_front, pareto_front
from edje_jax.models.token_formats import FORMATS
from edje_jax.system.files import atomic_path, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger(__name__)

MARKS = "oD^vsP*X"
"""Marks of token dtypes in the plot, in the order of `FORMATS`."""
FILLS = ("full", "none", "left", "right", "top", "bottom")
"""Fillings of the marks, one for each first stage."""


def tuning_tables(
    results: Sequence[TuneResult],
    calibrations: Mapping[str, Calibration],
    data: str,
    queries: int,
) -> list[Table]:
    """Tables of all results and of each model's calibration.

    `data` names the set, and `queries` is the number of captions that were timed together.
    """
    names = short_names([result.model for result in results])
    return [
        results_table(results, data, queries),
        *(calibration_table(names[model], found) for model, found in calibrations.items()),
    ]


def results_table(results: Sequence[TuneResult], data: str, queries: int) -> Table:
    """Table of all results, best recall first; first stages stand in it where there is a choice."""
    title = (
        f"R@1 of match logits alone on {data} against cost on this machine, {queries} queries at"
        " once; * on the front"
    )
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    out.add_column("", min_width=1)
    out.add_column("model", overflow="fold", min_width=10)
    staged = {result.first_stage for result in results} != {"exact"}
    stage, size = (("first stage",), ("+ stage",)) if staged else ((), ())
    for name in ("s", "tokens", *stage, "k", "T2I", "I2T", "bytes", *size, "pairs/s", "ms/query"):
        out.add_column(name, justify="right", no_wrap=True)
    names = short_names([result.model for result in results])
    rows = sorted(zip(results, on_front(results), strict=True), key=lambda row: -row[0].recall)
    for result, best in rows:
        out.add_row(
            "*" if best else "",
            names[result.model],
            layers_label(result),
            result.token_dtype,
            *([result.first_stage] if staged else []),
            str(result.k),
            f"{result.t2i:.2f}",
            f"{result.i2t:.2f}",
            f"{result.bytes_per_picture:,}",
            *([f"{result.first_stage_bytes:,}"] if staged else []),
            f"{result.pairs_per_second:,.0f}",
            f"{1e3 / result.queries_per_second:.1f}",
            style="bold" if best else "",
        )
    return out


def calibration_table(model: str, found: Calibration) -> Table:
    """Table of a model's calibration, and of what it changes."""
    record = found.fitted
    title = f"Calibration of {model} on {record['data']}, k = {record['k']}"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    out.caption = "-> from the logit alone to the calibrated score; errors of images not fitted on"
    out.caption_justify = "left"
    for name in ("similarity_weight", "temperature", "bias"):
        out.add_row(name.replace("_", " "), f"{getattr(found, name):.3g}")
    for key, label in DIRECTIONS.items():
        recalls = " -> ".join(f"{value:.1f}" for value in record["recall_at_1"][key])
        out.add_row(f"R@1, {label.lower()}", recalls)
    for key, label in DIRECTIONS.items():
        errors = ("?" if value is None else f"{value:.3f}" for value in record["ece"][key])
        out.add_row(f"expected calibration error, {label.lower()}", " -> ".join(errors))
    least = "none" if found.least_score is None else f"{found.least_score:.3f}"
    out.add_row(f"least score for {100 * record['precision']:g} % right", least)
    kept = " and ".join(f"{record['recall_kept'][key]:.1f}" for key in DIRECTIONS)
    out.add_row("right answers that reach it, % of queries", kept)
    return out


def write_tuning(
    folder: Path,
    results: Sequence[TuneResult],
    calibrations: Mapping[str, Calibration],
    data: str,
) -> None:
    """Write `tune.json` and `tune.png`.

    Raises:
        OSError: a file cannot be written; none is left half-written.
    """
    choices = [
        {**dataclasses.asdict(result), "on_front": best}
        for result, best in zip(results, on_front(results), strict=True)
    ]
    fitted = {model: dataclasses.asdict(found) for model, found in calibrations.items()}
    write_json(folder / "tune.json", {"data": data, "choices": choices, "calibrations": fitted})
    draw(results, folder / "tune.png")


def draw(results: Sequence[TuneResult], path: Path) -> None:
    """Plot R@1 against milliseconds per query and against bytes.

    Each model has a colour, each dtype a mark, each first stage a filling, and each panel a line
    along the best of the two numbers that it shows. Without matplotlib, a warning is logged and
    nothing is written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning('no %s, as matplotlib is not installed: pip install "edje-jax[eval]"', path)
        return
    figure = Figure(figsize=(10, 5), layout="constrained")
    time, size = figure.subplots(1, 2, sharey=True)
    _panel(time, results, [1e3 / result.queries_per_second for result in results])
    _panel(size, results, [result.bytes_per_image for result in results])
    time.set(xlabel="ms per query, reranking alone", ylabel="R@1, mean of both ways")
    size.set(xlabel="bytes per image, of tokens and first stage")
    size.minorticks_off()
    sizes = sorted({result.bytes_per_image for result in results})
    size.set_xticks(sizes, [f"{bytes_:,}" for bytes_ in sizes])
    names = short_names([result.model for result in results])
    for number, (model, name) in enumerate(names.items()):
        one = next(result for result in results if result.model == model)
        time.plot([], [], "s", color=f"C{number}", label=f"{name} (s = {layers_label(one)})")
    for dtype in dict.fromkeys(result.token_dtype for result in results):
        time.plot([], [], mark_of(dtype), color="grey", label=dtype)
    fills = fills_of(results)
    for stage in fills if len(fills) > 1 else ():
        time.plot([], [], "o", color="grey", fillstyle=fills[stage], label=stage)
    figure.suptitle("Full colour: on the Pareto front of R@1, time and bytes", fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _panel(axes: "Axes", results: Sequence[TuneResult], cost: Sequence[float]) -> None:
    """Draw all results at their cost, and the front of recall and cost."""
    recall = [result.recall for result in results]
    best = np.flatnonzero(pareto_front([(r, -c) for r, c in zip(recall, cost, strict=True)]))
    best = best[np.argsort(np.asarray(cost)[best])]
    axes.plot(np.asarray(cost)[best], np.asarray(recall)[best], color="grey", linewidth=1, zorder=0)
    models, fills = list(dict.fromkeys(result.model for result in results)), fills_of(results)
    for result, x, y, shown in zip(results, cost, recall, on_front(results), strict=True):
        axes.plot(
            x, y, mark_of(result.token_dtype), color=f"C{models.index(result.model)}",
            markersize=8 if shown else 5, alpha=1 if shown else 0.4,
            fillstyle=fills[result.first_stage],
        )  # fmt: skip
    axes.set(xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")


def mark_of(dtype: str) -> str:
    """Mark of the points of a token dtype."""
    return MARKS[list(FORMATS).index(dtype) % len(MARKS)]


def fills_of(results: Sequence[TuneResult]) -> dict[str, str]:
    """Filling of each first stage's marks, in the order of the results."""
    stages = dict.fromkeys(result.first_stage for result in results)
    return {stage: FILLS[i % len(FILLS)] for i, stage in enumerate(stages)}


def layers_label(result: TuneResult) -> str:
    """Number of deferred layers, marked if the others leave vision rows unchanged."""
    attended = result.online_vision == "attended"
    return f"{result.deferred_layers} attended" if attended else str(result.deferred_layers)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Short name of each model: the last part of a workdir's path or of a model folder's, or all of
    it where two would be equal or there is no such part."""
    models = list(dict.fromkeys(models))
    names = [_last_part(model) for model in models]
    return {
        model: name if names.count(name) == 1 else model
        for model, name in zip(models, names, strict=True)
    }


def _last_part(model: str) -> str:
    *_, above, name = ("", "", *Path(model).parts)
    return (above if name == "model" and above else name) or model
