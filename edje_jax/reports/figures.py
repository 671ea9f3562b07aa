"""Figures of the report, by matplotlib, as SVG that takes its colours from the page.

Every colour drawn is a stand-in for one of the page's CSS variables, so that a figure is light or
dark as the page is. Matplotlib is optional (`pip install 'edje-jax[eval]'`).
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from edje_jax.evaluation.measures import MEASURES
from edje_jax.evaluation.retrieval import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ink": "#010101", "soft": "#020202", "line": "#030303", "base": "#040404",
    "accent": "#050505", "tile": "#060606",
}  # fmt: skip
"""Stand-ins for the page's variables, as matplotlib takes them."""
LINES = ("accent", "ink", "soft")
"""Colours of the measures' lines."""


@dataclass(frozen=True)
class Figure:
    """SVG of a figure, with its title and a sentence on how to read it."""

    title: str
    about: str
    svg: str


def figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """Draw the figures for which metrics.json has numbers: measures, depths, calibration.

    Raises:
        ImportError: matplotlib is not installed.
    """
    made = [
        (
            "Recall, base beside reranked",
            "Whiskers: the 95% interval of the gain, from draws of other images.",
            _bars,
        )
    ]
    if "k_sweep" in metrics:
        made.append(
            (
                "Recall against the rerank depth",
                "Under each depth k, what scoring its candidates costs at the measured rate.",
                _depths,
            )
        )
    if "calibration" in metrics:
        made.append(
            (
                "Calibration of the match score",
                "Scored candidates by their score, and how many of them are right; a calibrated"
                " score lies on the diagonal. Areas: pairs. ECE: their mean distance from it.",
                _calibration,
            )
        )
    return [Figure(title, about, _panels(draw, metrics, title)) for title, about, draw in made]


def _in_percent() -> list[str]:
    """Names of the measures that figures show."""
    return [measure.name for measure in MEASURES if measure.unit == "percent"]


def _bars(axes: "Axes", metrics: Mapping[str, Any], key: str) -> None:
    """Bars of every measure, base beside reranked, with the interval of the gain."""
    side, names = metrics[key], _in_percent()
    tops = {stage: [side[stage][name] for name in names] for stage in ("base", "reranked")}
    for shift, stage, colour in ((-0.2, "base", "base"), (0.2, "reranked", "accent")):
        places = [i + shift for i in range(len(names))]
        axes.bar(places, tops[stage], 0.36, color=COLOURS[colour], label=stage)
    if "interval" in metrics:
        for i, name in enumerate(names):
            low, high = (side["base"][name] + points for points in metrics["interval"][key][name])
            axes.plot([i + 0.2] * 2, [low, high], color=COLOURS["ink"], linewidth=1.2)
            tops["reranked"][i] = max(high, tops["reranked"][i])
    for shift, stage in ((-0.2, "base"), (0.2, "reranked")):
        for i, name in enumerate(names):
            text, place = f"{side[stage][name]:.1f}", (i + shift, tops[stage][i] + 2)
            axes.text(*place, text, color=COLOURS["ink"], fontsize=9, ha="center")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 114)
    axes.set_yticks(range(0, 101, 25))


def _depths(axes: "Axes", metrics: Mapping[str, Any], key: str) -> None:
    """Lines of every measure, and of the ceiling, against the depth."""
    at = metrics["k_sweep"]["at"]
    depths = [one["k"] for one in at]
    for name, mark, colour in zip(_in_percent(), cycle("os^Dv"), cycle(LINES), strict=False):
        values = [one[key]["reranked"][name] for one in at]
        axes.plot(depths, values, f"-{mark}", color=COLOURS[colour], label=name, markersize=4.5)
    ceiling = [one[key]["ceiling"] for one in at]
    axes.plot(depths, ceiling, "--", color=COLOURS["base"], label="ceiling of R@1")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(depths, [f"{one['k']}\n{_brief(one['ms_per_query'])} ms" for one in at])


def _calibration(axes: "Axes", metrics: Mapping[str, Any], key: str) -> None:
    """Share of right candidates against their score, before and after the calibration."""
    axes.plot([0, 1], [0, 1], "--", color=COLOURS["base"], linewidth=1)
    lines = [(metrics["calibration"][key], "accent", "calibrated")]
    if "uncalibrated" in metrics:
        lines.insert(0, (metrics["uncalibrated"][key], "soft", "sigmoid of the logit"))
    for one, colour, _ in lines:
        total = sum(part["pairs"] for part in one["bins"])
        scores, right = ([part[name] for part in one["bins"]] for name in ("score", "right"))
        axes.plot(scores, right, "-", color=COLOURS[colour], linewidth=1)
        sizes = [12 + 240 * part["pairs"] / total for part in one["bins"]]
        axes.scatter(scores, right, sizes, color=COLOURS[colour], zorder=3)
    if len(lines) > 1:
        for one, colour, name in lines:
            label = f"{name}: ECE {one['ece']:.3f}"
            axes.plot([], [], "o-", color=COLOURS[colour], markersize=4.5, label=label)
        axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=COLOURS["ink"])
    else:
        axes.text(0.03, 0.93, f"ECE {lines[0][0]['ece']:.3f}", color=COLOURS["ink"], va="top")
    axes.set_xlabel("match score", color=COLOURS["soft"])
    axes.set_ylabel("share that is right", color=COLOURS["soft"])
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)


def _panels(draw, metrics: Mapping[str, Any], label: str) -> str:
    """SVG called `label` with a panel for each direction, which `draw` fills."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    # A fixed salt, for the same bytes from the same numbers.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edje", "font.size": 10}):
        canvas = Canvas(figsize=(8.6, 3.1), layout="constrained")
        canvas.patch.set_alpha(0)
        panels = canvas.subplots(1, len(DIRECTIONS))
        for axes, (key, title) in zip(panels, DIRECTIONS.items(), strict=True):
            draw(axes, metrics, key)
            _style(axes, title)
        marks, names = panels[0].get_legend_handles_labels()
        if names and not panels[0].get_legend():
            canvas.legend(
                marks, names, loc="outside upper right", ncols=len(names), frameon=False,
                labelcolor=COLOURS["soft"], fontsize=9,
            )  # fmt: skip
        data = io.BytesIO()
        canvas.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(data.getvalue().decode(), label)


def _style(axes: "Axes", title: str) -> None:
    """Give a panel its title and the page's colours."""
    axes.set_title(title, color=COLOURS["ink"], loc="left", fontsize=11)
    axes.patch.set_alpha(0)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=COLOURS["soft"], length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(COLOURS["line"])


def _inline(svg: str, label: str) -> str:
    """Turn an SVG file into an element of an HTML page, with the page's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # It would style the whole page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    name = f'role="img" aria-label="{label}"'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg \1 {name}>", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px)[^;\"]*", r"font-size: \2", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _brief(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"
