"""Gain of reranking over the first stage, pooled over evaluations of disjoint sets such as folds.

    python benchmarks/pooled_gain.py runs/0/eval runs/1/eval ... [--out gain.json]

Folders are those of `eval.py --out`. Every query counts once; the 95% interval is that of
`evaluation.intervals`, images drawn with replacement from all sets together.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.evaluation.intervals import difference_intervals, format_interval
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.retrieval import DIRECTIONS


def main() -> None:
    """Print base, reranked, gain and interval of both directions; write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="EVAL")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    result = pooled(options.evaluations)
    for key, one in result.items():
        for name in one["base"]:
            print(
                f"{DIRECTIONS[key]} {name}: base {one['base'][name]:.1f}, reranked"
                f" {one['reranked'][name]:.1f}, {one['gain'][name]:+.1f}"
                f" ({format_interval(one['interval'][name])})"
            )
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


def pooled(folders: list[Path]) -> dict[str, dict[str, Any]]:
    """{direction: {"queries", "base", "reranked", "gain", "interval"}} of all queries together."""
    ranks: dict[str, list[tuple[int, int]]] = {key: [] for key in DIRECTIONS}
    images: dict[str, list[str]] = {key: [] for key in DIRECTIONS}
    for folder in folders:
        with (folder / "per_query.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                key, name = row["direction"], row["query_id"]
                ranks[key].append((int(row["base_rank"]), int(row["reranked_rank"])))
                images[key].append(name.rpartition("#")[0] if key == "t2i" else name)
    out = {}
    for key in DIRECTIONS:
        base, reranked = np.array(ranks[key]).T
        number = {name: i for i, name in enumerate(dict.fromkeys(images[key]))}
        owner = np.array([number[name] for name in images[key]])
        before, after = measure_ranks(base), measure_ranks(reranked)
        out[key] = {
            "queries": len(base),
            "base": before,
            "reranked": after,
            "gain": {name: after[name] - before[name] for name in before},
            "interval": difference_intervals(base, reranked, owner),
        }
    return out


if __name__ == "__main__":
    main()
