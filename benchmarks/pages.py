"""Pages whose tables are filled in from results."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}

Row = dict[str, Any]
"""A part of a result file."""


def filled(page: str, topic: str, tables: Mapping[str, str]) -> str:
    """Page with each table put between <!-- TOPIC NAME --> and <!-- /TOPIC NAME -->."""
    for name, table in tables.items():
        begin, end = f"<!-- {topic} {name} -->", f"<!-- /{topic} {name} -->"
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        page = place.sub(lambda _, new=f"{begin}\n{table}\n{end}": new, page)
    return page


def markdown(head: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Table of cells under a head."""
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(mean: float, interval: Sequence[float]) -> str:
    """Difference with its interval as pages write it: +2.0 [-1.6, 5.5]."""
    return f"{mean:+.1f} {in_brackets(interval)}"


def each(values: Iterable[float]) -> str:
    """Values of several runs: 80.5, 78.4."""
    return ", ".join(f"{value:.1f}" for value in values)


def in_brackets(interval: Sequence[float]) -> str:
    """Interval as pages write it: [-1.6, 5.5]."""
    low, high = interval
    return f"[{low:.1f}, {high:.1f}]"


def load_result(name: str) -> dict[str, Any]:
    """Result file of a name, as `json.loads` gives it."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
