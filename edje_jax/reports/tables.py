"""Tables of an evaluation, for the terminal: a row or a column for every measure, 80 characters
wide at most."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.markup import escape
from rich.table import Table

from edje_jax.evaluation.intervals import LEVEL, format_interval
from edje_jax.evaluation.measures import MEASURES
from edje_jax.evaluation.retrieval import DIRECTIONS

WIDTH = 80
"""Characters of a terminal's line, into which tables fit with any number of measures."""


class TextColumn(NamedTuple):
    """Column of a table that has a line for each setting."""

    name: str
    cells: Sequence[str]

    @property
    def width(self) -> int:
        """Characters of the longest cell or word of the name."""
        return max(map(len, (*self.name.split(), *self.cells)))


CATEGORY_MEASURES = ("mAP@10", "mAP@100", "mAP@N", "chance")
"""Measures by categories, as metrics.json calls them."""


def evaluation_tables(metrics: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of everything that was measured; `metrics` is the content of a `metrics.json`."""
    yield metrics_table(metrics)
    if "first_stage" in metrics:
        yield first_stage_table(metrics["first_stage"])
    if "categories" in metrics:
        yield categories_table(metrics["categories"], metrics["base_categories"])
    if "folds" in metrics:
        yield folds_table(metrics["folds"])
    if "k_sweep" in metrics:
        yield from k_tables(metrics["k_sweep"])
    if "similarity_weights" in metrics:
        yield from weight_tables(metrics["similarity_weights"])
    if "eccv" in metrics:
        yield eccv_table(metrics["eccv"])


def first_stage_table(found: Mapping[str, Any]) -> Table:
    """Table of a first stage's own recalls, without rescoring or reranking."""
    bits = f" of {found['bits']} bits" if found["bits"] else ""
    what = f"First stage alone: {found['name']}{bits}, {found['bytes_per_image']:,} bytes an image"
    out = Table(title=f"{what} (percent)", title_justify="left")
    out.add_column("")
    for name in found["t2i"]:
        out.add_column(name, justify="right", no_wrap=True)
    for key, direction in DIRECTIONS.items():
        out.add_row(direction, *(f"{value:.2f}" for value in found[key].values()))
    return out


def categories_table(found: Mapping[str, Any], base: Mapping[str, Any]) -> Table:
    """Table of mean average precision by categories, base and reranked, beside chance."""
    out = Table(title="By categories (percent)", title_justify="left")
    out.add_column("")
    out.add_column("")
    for name in CATEGORY_MEASURES:
        out.add_column(name, justify="right", no_wrap=True)
    for key, direction in DIRECTIONS.items():
        for name, side in (("base", base[key]), ("reranked", found[key])):
            out.add_row(direction, name, *(f"{side[x]:.2f}" for x in CATEGORY_MEASURES))
    return out


def metrics_table(metrics: Mapping[str, Any], title: str = "Base and reranked") -> Table:
    """Table of base beside reranked in both directions, with k, the ceiling and the gain.

    `metrics` is `Retrieval.metrics()` or the content of a `metrics.json`; where it has intervals,
    they stand beside the gains, and where a second model has reranked the best, its measures stand
    beside the first one's.
    """
    k, then = metrics["k"], metrics.get("then")
    intervals = metrics.get("interval")
    out = Table(title=f"{title}, k = {k} (percent)", title_justify="left")
    # On a narrow terminal the words of a line are wrapped, as no digit must be lost.
    out.add_column("")
    out.add_column("", justify="right")
    interval = [f"{intervals['level']}% interval"] if intervals else []
    second = ["then"] if then else []
    for name in ("base", "reranked", "gain", *interval, *second, f"ceiling\nhit@{k}"):
        out.add_column(name, justify="right", no_wrap=True)
    if then:
        out.caption = escape(
            f"then: {then['model']} reranks the best {then['k']}, weight {then['weight']:g}"
        )
        out.caption_justify = "left"
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
                *([f"{then[key][measure.name]:.2f}"] if then else []),
                "" if number else f"{result['ceiling']:.2f}",
                end_section=measure is MEASURES[-1],
            )
    return out


def folds_table(folds: Mapping[str, Any]) -> Table:
    """Table of the mean over folds; `folds` is `evaluation.protocols.folds_summary`."""
    sizes = sorted(set(folds["pictures"]))
    size = " to ".join(f"{n:,}" for n in sizes)
    return metrics_table(folds, f"Mean of {folds['count']} folds of {size} images")


def k_tables(sweep: Mapping[str, Any]) -> Iterator[Table]:
    """Tables of reranked measures by depth, with what a query costs; `sweep` is
    `evaluation.protocols.k_sweep`."""
    title = f"Reranked, by depth, at {sweep['pairs_per_second']:,.1f} pairs a second (percent)"
    depths = TextColumn("k", [f"{at['k']:,}" for at in sweep["at"]])
    costs = TextColumn("ms a query", [f"{at['ms_per_query']:,.1f}" for at in sweep["at"]])
    return _by_setting(title, (depths, costs), sweep["at"])


def weight_tables(sweep: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Tables of reranked measures by weight of the cosine; `sweep` is
    `evaluation.protocols.weight_sweep`."""
    weights = TextColumn("weight", [f"{at['similarity_weight']:g}" for at in sweep])
    return _by_setting("Reranked, by similarity weight (percent)", (weights,), sweep)


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


def _by_setting(
    title: str, settings: Sequence[TextColumn], results: Sequence[Mapping[str, Any]]
) -> Iterator[Table]:
    """Tables with a line for each setting: the setting, then every measure and the ceiling in both
    directions."""
    room = WIDTH - 1 - _width(settings)
    sides = [_measured(results, key) for key in DIRECTIONS]
    for number, part in enumerate(_fitting(sides, room)):
        out = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
        out.title = None if number else title
        columns = [*settings, *part]
        for column in columns:
            # Folded on a narrow terminal, as no digit must be lost.
            out.add_column(column.name, justify="right", overflow="fold", width=column.width)
        for row in zip(*(column.cells for column in columns), strict=True):
            out.add_row(*row)
        yield out


def _measured(results: Sequence[Mapping[str, Any]], key: str) -> list[TextColumn]:
    """Columns of every reranked measure and of the ceiling of a direction."""
    values = {m.label: [at[key]["reranked"][m.name] for at in results] for m in MEASURES}
    values["hit@k"] = [at[key]["ceiling"] for at in results]
    return [
        TextColumn(f"{key.upper()} {name}", [f"{value:.2f}" for value in column])
        for name, column in values.items()
    ]


def _fitting(sides: Sequence[Sequence[TextColumn]], room: int) -> Iterator[list[TextColumn]]:
    """Columns that fit side by side: of all sides if there is `room`, else of a side or less."""
    whole = [column for side in sides for column in side]
    for side in [whole] if _width(whole) <= room else sides:
        part: list[TextColumn] = []
        for column in side:
            if part and _width([*part, column]) > room:
                yield part
                part = []
            part.append(column)
        yield part


def _width(columns: Sequence[TextColumn]) -> int:
    """Characters that columns take side by side, with the two between a column and the next."""
    return sum(column.width + 2 for column in columns)


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
