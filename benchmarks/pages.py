"""Pages whose tables are filled in from results."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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


def interval(bounds: Sequence[float]) -> str:
    """Interval as pages write it: [-1.6, 5.5]."""
    low, high = bounds
    return f"[{low:.1f}, {high:.1f}]"


def load_result(name: str) -> dict[str, Any]:
    """Result file of a name, as `json.loads` gives it."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
