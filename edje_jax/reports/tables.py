"""Tables of an evaluation, for the terminal. Each has a row or a column for every measure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from edje_jax.evaluation.intervals import LEVEL, format_interval
from edje_jax.evaluation.measures import MEASURES
from edje_jax.evaluation.retrieval import DIRECTIONS


def evaluation_tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of everything that was measured; `metrics` is the content of a `metrics.json`."""
    yield metrics_table(metrics)
    for name, make in (
        ("folds", folds_table),
        ("k_sweep", k_table),
        ("similarity_weights", weight_table),
        ("eccv", eccv_table),
    ):
        if name in metrics:
            yield make(metrics[name])


def metrics_table(metrics: Mapping[str, Any], title: str = "Base and reranked") -> Table:
    """Table of base beside reranked in both directions, with k, the ceiling and the gain.

    `metrics` is `Retrieval.metrics()` or the content of a `metrics.json`; where it has intervals,
    they stand beside the gains.
    """
    k = metrics["k"]
    intervals = metrics.get("interval")
    out = Table(title=f"{title}, k = {k} (percent)", title_justify="left")
    out.add_column("", no_wrap=True)
    for name in ("", "base", "reranked", "gain"):
        out.add_column(name, justify="right")
    if intervals:
        out.add_column(f"{intervals['level']}% interval", justify="right", no_wrap=True)
    out.add_column(f"ceiling (hit@{k})", justify="right")
    for key, direction in DIRECTIONS.items():
        result = metrics[key]
        for number, measure in enumerate(MEASURES):
            base, reranked = (result[stage][measure.name] for stage in ("base", "reranked"))
            out.add_row(
                "" if number else direction,
                measure.label,
                f"{base:.2f}",
                f"{reranked:.2f}",
                f"{reranked - base:+.2f}",
                *([format_interval(intervals[key][measure.name])] if intervals else []),
                "" if number else f"{result['ceiling']:.2f}",
                end_section=measure is MEASURES[-1],
            )
    return out


def folds_table(folds: Mapping[str, Any]) -> Table:
    """Table of the mean over folds; `folds` is `evaluation.protocols.folds_summary`."""
    sizes = sorted(set(folds["pictures"]))
    size = " to ".join(f"{n:,}" for n in sizes)
    return metrics_table(folds, f"Mean of {folds['count']} folds of {size} images")


def k_table(sweep: Mapping[str, Any]) -> Table:
    """Table of reranked measures by depth, with what a query costs; `sweep` is
    `evaluation.protocols.k_sweep`."""
    title = f"Reranked, by depth, at {sweep['pairs_per_second']:,.1f} pairs a second (percent)"
    rows = [(f"{at['k']:,}", f"{at['ms_per_query']:,.1f}", at) for at in sweep["at"]]
    return _by_setting(title, ("k", "ms a query"), rows)


def weight_table(sweep: Sequence[Mapping[str, Any]]) -> Table:
    """Table of reranked measures by weight of the cosine; `sweep` is
    `evaluation.protocols.weight_sweep`."""
    rows = [(f"{at['similarity_weight']:g}", at) for at in sweep]
    return _by_setting("Reranked, by similarity weight (percent)", ("weight",), rows)


def eccv_table(found: Mapping[str, Any]) -> Table:
    """Table of the metrics of CxC and ECCV Caption; `found` is `evaluation.eccv.eccv_metrics`."""
    out = Table(title="COCO by CxC and ECCV Caption (percent)", title_justify="left")
    out.add_column("")
    for key in DIRECTIONS:
        for stage in ("base", "reranked"):
            out.add_column(f"{key.upper()} {stage}", justify="right")
    for name in found["base"]:
        values = (found[stage][name][key] for key in DIRECTIONS for stage in ("base", "reranked"))
        out.add_row(name, *(f"{value:.2f}" for value in values))
    return out


def _by_setting(title: str, names: tuple[str, ...], rows: Iterable[tuple]) -> Table:
    """Table with a line for each setting: the setting, then every measure and the ceiling in both
    directions."""
    out = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in names:
        out.add_column(name, justify="right")
    for key in DIRECTIONS:
        for name in (*(measure.label for measure in MEASURES), "hit@k"):
            # Folded on a narrow terminal, as no digit must be lost.
            out.add_column(f"{key.upper()} {name}", justify="right", overflow="fold")
    for *setting, at in rows:
        values = [
            value
            for key in DIRECTIONS
            for value in (*(at[key]["reranked"][m.name] for m in MEASURES), at[key]["ceiling"])
        ]
        out.add_row(*setting, *(f"{value:.2f}" for value in values))
    return out


def comparison_table(result: dict[str, Any]) -> Table:
    """Table of two evaluations and their difference; `result` is `evaluation.compare.compare`."""
    out = Table(title="Reranked, A and B (percent)", title_justify="left")
    out.caption = "\n".join(
        f"{name.upper()}: {escape(one['model'])} on {escape(one['data'])}, k = {one['k']}, "
        f"similarity weight {one['similarity_weight']:g}"
        for name, one in ((name, result[name]) for name in ("a", "b"))
    )
    out.caption_justify = "left"
    out.add_column("")
    for name in ("", "A", "B", "B - A", f"{LEVEL}% interval"):
        out.add_column(name, justify="right")
    for key, direction in DIRECTIONS.items():
        side = result[key]
        for number, measure in enumerate(MEASURES):
            out.add_row(
                "" if number else direction,
                measure.label,
                *(f"{side[name][measure.name]:.2f}" for name in ("a", "b")),
                f"{side['difference'][measure.name]:+.2f}",
                format_interval(side["interval"][measure.name]),
                end_section=measure is MEASURES[-1],
            )
    return out
