"""Tables of captioners, from `captioner`, `captioner_choices`, `cascade` and `teachers`."""

from collections.abc import Iterable

from pages import DIRECTIONS, Row, difference, each, load_result, markdown

RANKED = {
    "base": "backbone",
    "edje": "EDJE",
    "edje + cosine": "EDJE + cosine",
    "forward pmi": "captioner, forward (`pmi`)",
    "backward pmi": "captioner, backward (`pmi`)",
    "both sum": "captioner, both (`sum`)",
    "both mean": "captioner, both (`mean`)",
    "both pmi": "captioner, both (`pmi`)",
    "captioner + cosine": "captioner + cosine",
    "edje + captioner + cosine": "EDJE + captioner + cosine",
}
"""Rows of `captioner.py` that the page shows, in its order, and what it calls them."""

DATA = {"emoji": "emoji", "shapes": "drawn scenes"}


def tables() -> dict[str, str]:
    """All tables of the page, by name."""
    made = {"cascade": cascade(load_result("cascade"))}
    for data, shown in DATA.items():
        suffix = "" if data == "shapes" else f"_{data}"
        rows = load_result(f"captioner_{data}")["rows"]
        made |= {f"ranking {data} {way}": ranking(rows, way) for way in DIRECTIONS}
        grids = load_result(f"captioner_grids{suffix}")["rows"]
        made[f"grids {data}"] = choices(grids, "input, grid", "the first", tokens=True)
        losses = load_result(f"captioner_matching{suffix}")["rows"]
        made[f"matching {data}"] = choices(losses, "loss", "captioning's")
        made[f"teachers {data}"] = teachers(load_result(f"teachers_{data}")["rows"], shown)
    return made


def ranking(rows: list[Row], way: str) -> str:
    """R@1 of every way to order the candidates, and less that of the EDJE."""
    by_name = {row["name"]: row[way] for row in rows}
    cells = []
    for name, shown in RANKED.items():
        found = by_name[name]
        less = "" if name == "edje" else difference(**found["R@1 less EDJE's"])
        cells.append([shown, seeds(found), less])
    return markdown((f"{DIRECTIONS[way]}, R@1 in percent", "mean (seeds)", "less EDJE's"), cells)


def choices(rows: list[Row], what: str, shown_as: str, tokens: bool = False) -> str:
    """R@1 of captioners that were trained in several ways, and less that of the first row."""
    head = [what, *(["tokens"] if tokens else []), "seconds of steps"]
    for shown in DIRECTIONS.values():
        head += [shown, f"less {shown_as}"]
    return markdown(head, (choice(row, rows[0]["name"], tokens) for row in rows))


def choice(row: Row, first_row: str, tokens: bool) -> list[str]:
    """Cells of one way to train."""
    cells = [row["name"], *([str(row["runs"][0]["tokens"])] if tokens else [])]
    cells.append(span(run["seconds"] for run in row["runs"]))
    for way in DIRECTIONS:
        less = row[way]["R@1 less"].get(first_row)
        cells += [seeds(row[way]), difference(**less) if less else ""]
    return cells


def teachers(rows: list[Row], shown: str) -> str:
    """R@1 of embeddings that learned from several teachers, and less that of none."""
    head = ["teachers", f"{shown}, text to image", "less none", "image to text", "less none"]
    names = {"backbone": "the backbone, no heads"}
    cells = []
    for row in rows:
        line = [names.get(row["name"], row["name"])]
        for way in DIRECTIONS:
            less = row[way].get("less none", {}).get("R@1")
            line += [f"{row[way]['mean']['R@1']:.1f}", difference(**less) if less else ""]
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
    return f"{found['R@1']:.1f} ({each(found['R@1 by seed'])})"


def span(seconds: Iterable[float]) -> str:
    """Least and most of some runs, in seconds."""
    least, *_, most = 2 * sorted(seconds)
    return f"{least:,.0f}" if least == most else f"{least:,.0f} to {most:,.0f}"
