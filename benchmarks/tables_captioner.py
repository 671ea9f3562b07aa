"""Tables of captioners, from `captioner_choices.py`, `cascade.py` and `teachers.py`."""

from collections.abc import Iterable, Mapping
from typing import Any

from pages import interval, load_result, markdown
from tables_first_stage import DIRECTIONS

Row = dict[str, Any]

SCENES = {"emoji": "emoji", "shapes": "drawn scenes"}


def tables() -> dict[str, str]:
    """All tables of the page, by name."""
    made = {"cascade": cascade(load_result("cascade"))}
    for data, scenes in SCENES.items():
        suffix = "" if data == "shapes" else f"_{data}"
        grids = load_result(f"captioner_grids{suffix}")["rows"]
        made[f"grids {data}"] = choices(grids, "input, grid", "the first", tokens=True)
        losses = load_result(f"captioner_matching{suffix}")["rows"]
        made[f"matching {data}"] = choices(losses, "loss", "captioning's")
        made[f"teachers {data}"] = teachers(load_result(f"teachers_{data}")["rows"], scenes)
    return made


def choices(rows: list[Row], what: str, first: str, tokens: bool = False) -> str:
    """R@1 of captioners that were trained in several ways, and less that of the first row."""
    head = [what, *(["tokens"] if tokens else []), "seconds of steps"]
    for shown in DIRECTIONS.values():
        head += [shown, f"less {first}"]
    return markdown(head, (choice(row, rows[0]["name"], tokens) for row in rows))


def choice(row: Row, first: str, tokens: bool) -> list[str]:
    """Cells of one way to train."""
    cells = [row["name"], *([str(row["runs"][0]["tokens"])] if tokens else [])]
    cells.append(span(run["seconds"] for run in row["runs"]))
    for way in DIRECTIONS:
        less = row[way]["R@1 less"].get(first)
        cells += [seeds(row[way]), difference(less) if less else ""]
    return cells


def teachers(rows: list[Row], scenes: str) -> str:
    """R@1 of embeddings that learned from several teachers, and less that of none."""
    head = ["teachers", f"{scenes}, text to image", "less none", "image to text", "less none"]
    names = {"backbone": "the backbone, no heads"}
    cells = []
    for row in rows:
        line = [names.get(row["name"], row["name"])]
        for way in DIRECTIONS:
            less = row[way].get("less none", {}).get("R@1")
            line += [f"{row[way]['mean']['R@1']:.1f}", difference(less) if less else ""]
        cells.append(line)
    return markdown(head, cells)


def cascade(result: Row) -> str:
    """R@1 and milliseconds of models alone, and of one after the other."""
    shown = [
        ("first stage", 0, 0),
        *(("EDJE", k, 0) for k in (10, 50)),
        *(("captioner", k, 0) for k in (10, 20, 50)),
        *(("EDJE, then captioner", k, 5) for k in (20, 50)),
    ]
    by_key = {(way["name"], way["k"], way["k2"]): way for way in result["ways"]}
    cells = []
    for key in shown:
        way, (name, k, then) = by_key[key], key
        candidates = f"{k}, then {then}" if then else str(k or "")
        name = "backbone, no heads" if name == "first stage" else name
        cells.append([name, candidates, f"{way['recall']:.1f}", f"{way['milliseconds']:.1f}"])
    return markdown(("", "candidates", "R@1", "ms a query"), cells)


def seeds(found: Row) -> str:
    """Mean R@1, and each seed's."""
    each = ", ".join(f"{value:.1f}" for value in found["R@1 by seed"])
    return f"{found['R@1']:.1f} ({each})"


def difference(less: Mapping[str, Any]) -> str:
    """Mean of a difference and its interval."""
    return f"{less['mean']:+.1f} {interval(less['interval'])}"


def span(seconds: Iterable[float]) -> str:
    """Least and most of some runs, in seconds."""
    each = sorted(seconds)
    return f"{each[0]:,.0f}" if len(each) == 1 else f"{each[0]:,.0f} to {each[-1]:,.0f}"
