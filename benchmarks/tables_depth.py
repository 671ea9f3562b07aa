"""Tables of recall against depth, from `rerank_depth.py`."""

from collections.abc import Mapping

from pages import DIRECTIONS, Row, load_result, markdown

DEPTHS = (5, 10, 20, 50, 100, 200)
MIXED = "+ first stage mixed in"
FOLDS = range(5)


def tables() -> dict[str, str]:
    """All tables of the page, by name."""
    scenes = load_result("rerank_depth")["models"]
    folds = [load_result(f"emoji_folds_depth_{fold}")["models"] for fold in FOLDS]
    return {
        **{f"scenes {way}": depths(scenes, way) for way in DIRECTIONS},
        "scenes calibration": calibration(scenes),
        "folds depth": fold_depths([next(iter(fold.values())) for fold in folds]),
    }


def depths(models: Mapping[str, Row], way: str) -> str:
    """R@1 of every model at every depth, by match logits alone and with the cosine mixed in."""
    first = next(iter(models.values()))
    cells = [["ceiling", *(f"{at['ceiling']:.1f}" for at in by_depth(first["alone"], way))]]
    for name, model in models.items():
        for label, part in ((name, "alone"), (MIXED, "mixed")):
            cells.append([label, *(top(at) for at in by_depth(model[part], way))])
    return markdown(depth_head(DIRECTIONS[way]), cells)


def fold_depths(folds: list[Row]) -> str:
    """Means of R@1 over folds."""
    cells = []
    for way, shown in DIRECTIONS.items():
        for label, part in ((f"{shown}, match logits alone", "alone"), (MIXED, "mixed")):
            found = [[at["reranked"]["R@1"] for at in by_depth(fold[part], way)] for fold in folds]
            cells.append([label, *means(found)])
        ceilings = [[at["ceiling"] for at in by_depth(fold["alone"], way)] for fold in folds]
        cells.append(["ceiling", *means(ceilings)])
    return markdown(depth_head("R@1"), cells)


def calibration(models: Mapping[str, Row]) -> str:
    """Expected calibration errors of plain sigmoids and of calibrated scores."""
    head = ["", *(f"{shown}, k = {k}" for shown in DIRECTIONS.values() for k in (10, 100))]
    cells = [
        [name, *(errors(model, way, k) for way in DIRECTIONS for k in (10, 100))]
        for name, model in models.items()
    ]
    return markdown(head, cells)


def errors(model: Row, way: str, k: int) -> str:
    """Error of plain sigmoids, and what calibration makes of it."""
    at = model["calibration"]["at"][str(k)]
    return f"{at['uncalibrated'][way]['ece']:.3f} -> {at['calibration'][way]['ece']:.3f}"


def by_depth(entries: list[Row], way: str) -> list[Row]:
    """Entries of one direction, in the order of `DEPTHS`."""
    found = {entry["k"]: entry[way] for entry in entries}
    return [found[k] for k in DEPTHS]


def top(entry: Row) -> str:
    """R@1 after reranking."""
    return f"{entry['reranked']['R@1']:.1f}"


def means(rows: list[list[float]]) -> list[str]:
    """Mean of each column."""
    return [f"{sum(column) / len(column):.1f}" for column in zip(*rows, strict=True)]


def depth_head(first: str) -> list[str]:
    """Head of a table with a column for each depth."""
    return [first, *(f"k = {k}" if k == DEPTHS[0] else str(k) for k in DEPTHS)]
