"""Tables of the order and direction of events in videos, from `video_order.py`."""

from pages import Row, difference, each, load_result, markdown

WAYS = {"t2i": "text to video", "i2t": "video to text"}
DIFFERENCES = {
    "order": "which of the two events comes first",
    "presence": "whether a thing appears or disappears",
    "colour": "from which colour to which other it turns",
    "across": "along the rows: left or right",
    "along": "along the columns: up or down",
    "behind": "which way it passes behind something",
}


def tables() -> dict[str, str]:
    """All tables of the page, by name; its main model is the first row of the result."""
    rows = load_result("video_order")["rows"]
    return {
        "order": order(rows[0]),
        "told apart": told_apart(rows[0]),
        "tokens a frame": tokens(rows),
    }


def order(row: Row) -> str:
    """R@1 within groups of the same frames and among all clips."""
    cells = []
    for way, shown in WAYS.items():
        found = row[way]
        values = [f"{found['base']:.1f}", f"{found['reranked']:.1f}"]
        seeds = each(found["reranked by seed"])
        cells.append([f"{shown}, within groups", *values, gain(found), seeds])
    for way, shown in WAYS.items():
        found = row[way]["all"]
        values = [f"{found['base']:.1f}", f"{found['reranked']:.1f}"]
        cells.append([f"{shown}, among all clips", *values, "", ""])
    return markdown(("", "first stage", "reranked", "gain", "seeds"), cells)


def told_apart(row: Row) -> str:
    """Percent of pairs of clips, different in one thing alone, that are told apart."""
    cells = [[shown, f"{row['told apart'][name]:.1f}"] for name, shown in DIFFERENCES.items()]
    return markdown(("what differs", "percent"), cells)


def tokens(rows: list[Row]) -> str:
    """R@1 within groups by the tokens of a frame, fewest first and pooled ones last."""
    head = ["", "tokens", "bytes"]
    for shown in WAYS.values():
        head += [f"{shown} (seeds)", "gain"]
    pooled = [row for row in rows if "mean" in row["name"]]
    single = sorted((row for row in rows if row not in pooled), key=lambda row: row["tokens"])
    cells = []
    for row in (*single, *pooled):
        line = [row["name"], str(row["tokens"]), f"{row['bytes_per_video']:,}"]
        for way in WAYS:
            found = row[way]
            seeds = each(found["reranked by seed"])
            line += [f"{found['reranked']:.1f} ({seeds})", gain(found)]
        cells.append(line)
    return markdown(head, cells)


def gain(found: Row) -> str:
    """Gain over the first stage with its interval."""
    return difference(**found["gain"])
