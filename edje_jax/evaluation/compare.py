"""Two evaluations of the same queries, side by side: B's reranked recalls less A's, paired."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.evaluation.intervals import DRAWS, LEVEL, difference_intervals
from edje_jax.evaluation.metrics import recalls
from edje_jax.evaluation.retrieval import DIRECTIONS


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Results in a folder that `edje eval --out` wrote."""

    folder: Path
    metrics: dict[str, Any]
    queries: dict[str, list[tuple[str, str]]]
    """Id and text of each direction's queries, in order."""
    ranks: dict[str, Int[np.ndarray, " q"]]
    """Rank of the best right answer of each query after reranking."""

    @property
    def about(self) -> str:
        """Which evaluation this is, in a few words."""
        m = self.metrics
        return (
            f"{self.folder} ({m['data']}, {m['pictures']:,} pictures, {m['captions']:,} captions)"
        )

    @property
    def summary(self) -> dict[str, Any]:
        """Settings of the evaluation that a comparison repeats."""
        said = {key: self.metrics[key] for key in ("model", "data", "k", "similarity_weight")}
        return {"folder": str(self.folder), **said}


def read_evaluation(folder: Path) -> Evaluated:
    """Open a folder of `edje eval --out`.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: its files are of different evaluations, or of none.
    """
    for name in ("metrics.json", "per_query.csv"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: no {name} here; name a folder of edje eval --out")
    queries: dict[str, list[tuple[str, str]]] = {key: [] for key in DIRECTIONS}
    ranks: dict[str, list[int]] = {key: [] for key in DIRECTIONS}
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        with (folder / "per_query.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                queries[row["direction"]].append((row["query_id"], row["query_text"]))
                ranks[row["direction"]].append(int(row["reranked_rank"]))
        stated = {key: metrics[key]["reranked"] for key in DIRECTIONS}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder}: not what edje eval --out writes ({error!r})") from error
    found = {key: np.array(values, np.int64) for key, values in ranks.items()}
    for key, values in found.items():
        if recalls(values) != stated[key]:
            raise ValueError(
                f"{folder}: per_query.csv gives {recalls(values)} for {key} and metrics.json "
                f"{stated[key]}: they are of different evaluations; run edje eval again"
            )
    return Evaluated(folder, metrics, queries, found)


def compare(a: Path, b: Path, seed: int = 0) -> dict[str, Any]:
    """{"a", "b", "t2i": {"a", "b", "difference", "interval"}, "i2t": {...}, ...}, in points.

    Differences are B's less A's; intervals are those of `intervals.difference_intervals`.

    Raises:
        FileNotFoundError, ValueError: see `read_evaluation`; also, A and B were evaluated on
            different galleries or queries.
    """
    first, second = read_evaluation(a), read_evaluation(b)
    _check_same(first, second)
    out: dict[str, Any] = {"a": first.summary, "b": second.summary}
    for key in DIRECTIONS:
        names = [query for query, _ in first.queries[key]]
        if key == "t2i":
            names = [name.rpartition("#")[0] for name in names]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        picture = np.array([number[name] for name in names])
        ranks = first.ranks[key], second.ranks[key]
        before, after = (recalls(values) for values in ranks)
        intervals = difference_intervals(*ranks, picture, seed)
        out[key] = {
            "a": before,
            "b": after,
            "difference": {at: after[at] - before[at] for at in before},
            "interval": {at: list(interval) for at, interval in intervals.items()},
        }
    return {**out, "interval": {"level": LEVEL, "draws": DRAWS, "seed": seed}}


def _check_same(a: Evaluated, b: Evaluated) -> None:
    remedy = "evaluate both on the same SPEC, with the same --pool"
    for key in DIRECTIONS:
        if a.queries[key] != b.queries[key]:
            pairs = zip(a.queries[key], b.queries[key], strict=False)
            odd = next((f"{x} and {y}" for x, y in pairs if x != y), "one has more")
            raise ValueError(
                f"{a.about} and {b.about} asked different {key} queries (first: {odd}); {remedy}"
            )
    if a.metrics.get("gallery") != b.metrics.get("gallery"):
        raise ValueError(f"{a.about} and {b.about} searched different galleries; {remedy}")
