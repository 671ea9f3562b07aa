"""Pages whose tables are filled in from results."""

import re
from collections.abc import Iterable, Mapping, Sequence


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
