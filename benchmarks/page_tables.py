"""Fill in the tables of pages from the result files that they quote.

    python benchmarks/page_tables.py            write the pages
    python benchmarks/page_tables.py --check    name the pages whose tables differ, and fail

A page has a place for each table between <!-- results NAME --> and <!-- /results NAME -->. Which
tables there are is told by the modules `tables_*.py`, one for each kind of experiment.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import tables_captioner
import tables_deferred
import tables_depth
import tables_first_stage
import tables_recalls
import tables_speed
import tables_videos
from pages import filled

DOCS = Path(__file__).parents[1] / "docs"
TOPIC = "results"

PAGES: dict[str, Callable[[], dict[str, str]]] = {
    "deferred-fusion.md": tables_deferred.tables,
    "fast-and-slow.md": tables_captioner.tables,
    "first-stage.md": lambda: tables_first_stage.tables() | tables_speed.hamming(),
    "guide/training.md": lambda: tables_recalls.windows() | tables_speed.parts_of_a_batch(),
    "large-indexes.md": tables_speed.large_indexes,
    "measured.md": tables_speed.measured,
    "rerank-depth.md": tables_depth.tables,
    "video.md": tables_videos.tables,
}
"""For each page what makes its tables, by name."""


def main() -> None:
    """Write all pages, or tell which of them differ from their results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, but tell")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pages to renew")
    options = parser.parse_args()
    stale = []
    for name in PAGES:
        page = options.out / name
        text = page.read_text("utf-8")
        new = renewed(name, text)
        if new != text:
            stale.append(name)
            if not options.check:
                page.write_text(new, "utf-8")
    done = "differs" if options.check else "renewed"
    print("\n".join(f"{name}: {done}" for name in stale) or "all pages show their results")
    if stale and options.check:
        parser.exit(1)


def renewed(name: str, text: str) -> str:
    """Text of a page with its tables made from the result files.

    Raises ValueError where the page lacks a place for a table, or has one that no table fills.
    """
    made = PAGES[name]()
    places = re.findall(rf"<!-- {TOPIC} ([^>]+) -->.*?<!-- /{TOPIC} \1 -->", text, re.DOTALL)
    if sorted(places) != sorted(made):
        raise ValueError(
            f"{name} has places for {sorted(places)}, and there are tables {sorted(made)}: "
            f"add <!-- {TOPIC} NAME --> and <!-- /{TOPIC} NAME -->, or take them away"
        )
    return filled(text, TOPIC, made)


if __name__ == "__main__":
    main()
