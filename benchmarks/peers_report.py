"""Tables of a peers.json, and the figures of EDJE's poster that stand beside them."""

import statistics
from collections.abc import Iterator
from textwrap import shorten
from typing import Any, NamedTuple

from pages import markdown
from rich.console import Console
from rich.table import Table

Result = dict[str, Any]


class Poster(NamedTuple):
    """Figures of a row of EDJE's poster and of its paper (arXiv 2510.06820)."""

    milliseconds: float
    """Milliseconds of 64 candidates on an A6000."""
    kilobytes: int
    """Stored for an image."""
    parameters: str


POSTER = {
    "ALBEF B/16": Poster(45.92, 1769, "147M"),
    "BLIP B/16": Poster(83.27, 1769, "139M"),
    "BLIP L/16": Poster(101.61, 2359, "139M"),
    "BLIP-2 L/16": Poster(98.64, 2359, "167M"),
    "EDJE Compressed-64": Poster(1.91, 49, "33M"),
}


OURS = ("ours, float32 (JAX", "ours, bfloat16 (JAX")
"""Beginnings of the names of sides that others are compared with: the first of a result's rows."""


class Line(NamedTuple):
    """Figures of a side that could be measured."""

    name: str
    cached: float
    """Milliseconds of one query's candidates, of images that were read before."""
    fastest: float
    slowest: float
    uncached: float | None
    """Milliseconds when each candidate's image is read first; computed."""
    slower: float | None
    """How many times as long as ours without deferred layers it takes."""
    kept: tuple[int, int]
    """Tokens and their width."""
    online: int
    total: int
    poster: str

    @property
    def stored(self) -> int:
        """Bytes stored for an image, two for a number."""
        return 2 * self.kept[0] * self.kept[1]


def lines(result: Result) -> Iterator[Line]:
    """Figures of every side that was measured."""
    ours = next(
        (
            row["seconds"]
            for name, row in result["rows"].items()
            if name.startswith(OURS) and "seconds" in row
        ),
        None,
    )
    for name, row in result["rows"].items():
        if "why" in row:
            continue
        each = sorted(1000 * seconds / result["queries"] for seconds in row["seconds"])
        cached = statistics.median(each)
        tower = read_milliseconds(result, row["tower"])
        yield Line(
            name,
            cached,
            each[0],
            each[-1],
            None if tower is None else cached + result["k"] * tower,
            statistics.median(row["seconds"]) / statistics.median(ours) if ours else None,
            tuple(row["stored"]),
            row["parameters"]["online"],
            row["parameters"]["total"],
            row["poster"],
        )


def read_milliseconds(result: Result, tower: str) -> float | None:
    """Milliseconds in which a vision tower reads an image; None where that was not measured."""
    seconds = result["towers"].get(tower, {}).get("seconds")
    return 1000 * statistics.median(seconds) / result["images"] if seconds else None


def tables(result: Result) -> dict[str, str]:
    """All tables in Markdown, by name."""
    return {
        "run": run(result),
        "times": times(result),
        "towers": towers(result),
        "sizes": sizes(result),
        "left out": left_out(result),
    }


def run(result: Result) -> str:
    """Machine and settings."""
    machine = result["machine"]
    devices = machine["devices"] if "cpu" not in machine["devices"] else [machine["processor"]]
    return (
        f"{', '.join(devices)}, {machine['cores']} cores, {machine['torch_threads']} threads of"
        f" PyTorch {machine['torch']}; {result['queries']} captions with {result['k']} candidates"
        f" each, {result['rounds']} rounds, {result['images']} images a call of a vision tower."
    )


def times(result: Result) -> str:
    """Milliseconds of every side."""
    k = result["k"]
    head = (
        "", "ms a pair", f"ms a query of {k}, cached", "fastest to slowest",
        f"ms of {k}, not cached", "times ours", "*poster: ms of 64*",
    )  # fmt: skip
    return markdown(
        head,
        [
            (
                line.name,
                brief(line.cached / k),
                brief(line.cached),
                f"{brief(line.fastest)} to {brief(line.slowest)}",
                optional(line.uncached),
                optional(line.slower),
                f"*{POSTER[line.poster].milliseconds:g}*" if line.poster else "",
            )
            for line in lines(result)
        ],
    )


def towers(result: Result) -> str:
    """Milliseconds in which an image is read."""
    cells = [
        (name, optional(read_milliseconds(result, name)))
        for name, row in result["towers"].items()
        if "why" not in row
    ]
    return markdown(("reads an image", "ms an image"), cells)


def sizes(result: Result) -> str:
    """Bytes and parameters; sides of one size stand in the first of their rows."""
    head = (
        "", "kept of an image", "kB an image", "online parameters", "with the vision tower",
        "*poster: kB*", "*poster: parameters*",
    )  # fmt: skip
    cells = {}
    for line in lines(result):
        poster = POSTER.get(line.poster)
        cells.setdefault(
            (line.kept, line.online, line.total),
            (
                line.name,
                f"{line.kept[0]} x {line.kept[1]}",
                f"{line.stored / 1000:,.0f}",
                f"{line.online / 1e6:.1f}M",
                f"{line.total / 1e6:.1f}M",
                f"*{poster.kilobytes:,}*" if poster else "",
                f"*{poster.parameters}*" if poster else "",
            ),
        )
    return markdown(head, cells.values())


def left_out(result: Result) -> str:
    """Sides without figures, and why."""
    rows = (result["rows"] | result["towers"]).items()
    cells = [
        (name, shorten(row["why"].replace("|", "/"), 90, placeholder=" ..."))
        for name, row in rows
        if "why" in row
    ]
    return markdown(("not measured", "why"), cells) if cells else "All sides were measured."


def show(result: Result) -> None:
    """Print all tables."""
    console = Console(width=max(Console().width, 130))
    for name, text in tables(result).items():
        head, *rest = text.splitlines()
        if not head.startswith("|"):
            console.print(text)
            continue
        table = Table(*cells(head), title=name)
        for line in rest[1:]:
            table.add_row(*cells(line))
        console.print(table)


def cells(line: str) -> list[str]:
    """Cells of a line of a Markdown table."""
    return [cell.strip().strip("*") for cell in line.strip("|").split("|")]


def optional(value: float | None) -> str:
    """Number, or a dash for none."""
    return "-" if value is None else brief(value)


def brief(value: float) -> str:
    """Number of about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
