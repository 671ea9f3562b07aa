"""Table and files of a compositional evaluation."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from edje_jax.evaluation.compositional import STAGES, Item, Scored, is_right, summarise
from edje_jax.system.files import atomic_text, write_json

SHOWN = 30
"""Categories shown in the table; compositional.json has all."""


def compositional_table(result: dict[str, Any]) -> Table:
    """Table of base beside reranked: over all items, over categories, and of each category."""
    kinds = [kind for kind in ("text", "image", "group") if kind in result]
    out = Table(title="Compositional, base and reranked (percent)", title_justify="left")
    for name in ("", "items", *(f"{kind} {stage}" for kind in kinds for stage in STAGES)):
        out.add_column(name, justify="right" if name else "left")
    categories = result.get("categories", {})
    rows = [("all", result)]
    if categories:
        rows.append(("mean of categories", {**result["macro"], "items": len(categories)}))
    rows += list(categories.items())[:SHOWN]
    for number, (name, one) in enumerate(rows):
        values = (
            f"{one[kind][stage]:.2f}" if kind in one else "" for kind in kinds for stage in STAGES
        )
        last = number == min(len(rows), 2) - 1
        out.add_row(escape(name), f"{one['items']:,}", *values, end_section=last)
    if len(categories) > SHOWN:
        out.caption = f"and {len(categories) - SHOWN} more categories in compositional.json"
    return out


def write_compositional(
    out: Path,
    items: Sequence[Item],
    scored: Sequence[Scored],
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Write `per_item.csv` and `compositional.json`; return the content of the latter.

    Raises:
        OSError: a file cannot be written; none is left half-written.
    """
    metrics = {**settings, **summarise(items, scored)}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_text(out / "per_item.csv") as file:
        rows = csv.writer(file)
        kinds = ("text", "image", "group")
        names = [f"{stage}_{kind}" for stage in STAGES for kind in kinds]
        rows.writerow(("item", "category", *names, "base_scores", "reranked_scores"))
        for item, one in zip(items, scored, strict=True):
            outcome = {stage: is_right(getattr(one, stage)) for stage in STAGES}
            flags = [
                int(outcome[stage][kind]) if kind in outcome[stage] else ""
                for stage in STAGES
                for kind in kinds
            ]
            scores = [json.dumps(getattr(one, stage).tolist()) for stage in STAGES]
            rows.writerow((item.name, item.category, *flags, *scores))
    write_json(out / "compositional.json", metrics)
    return metrics
