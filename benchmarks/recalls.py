"""R@1 of several trainings, seed by seed, and how much each differs from the one beside it.

    python benchmarks/recalls.py s0=runs/a/eval s0=runs/b/eval s2=runs/c/eval s2=runs/d/eval \
        --beside s0 [--out recalls.json]

Folders are those of `eval.py --out`. Those of one name are runs of one command with other seeds, in
the same order for every name; each is compared with the run of `--beside` of its place, on the same
queries.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edje_jax.evaluation.compare import compare
from edje_jax.evaluation.intervals import format_interval
from edje_jax.evaluation.retrieval import DIRECTIONS
from edje_jax.reports.evaluation_files import read_evaluation

SHARED = ("data", "k", "pictures", "captions", "gallery", "similarity_weight")
"""Fields of `metrics.json` that must be equal in all evaluations."""


def main() -> None:
    """Read all evaluations, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=EVAL")
    parser.add_argument("--beside", default="", help="name that the others are compared with")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    groups: dict[str, list[Path]] = {}
    for run in options.runs:
        name, _, folder = run.partition("=")
        groups.setdefault(name, []).append(Path(folder))
    result = measured(groups, options.beside)
    Console().print(table(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def measured(groups: dict[str, list[Path]], beside: str) -> dict[str, Any]:
    """{what is shared, "base", "groups": {name: {direction: recalls, mean, differences}}}.

    Raises:
        FileNotFoundError, ValueError: a folder holds no evaluation, they are of different sets, or
            there is nothing called `beside`.
    """
    if beside and beside not in groups:
        raise ValueError(f"--beside {beside}: none of {', '.join(groups)}")
    every = {name: [read_evaluation(folder) for folder in group] for name, group in groups.items()}
    settings = [
        {key: one.metrics.get(key) for key in SHARED} for group in every.values() for one in group
    ]
    if odd := next((one for one in settings if one != settings[0]), None):
        raise ValueError(f"these were evaluated differently: {settings[0]} and {odd}")
    first = next(iter(every.values()))[0].metrics
    kind, _, place = settings[0]["data"].partition(":")
    settings[0]["data"] = f"{kind}:{Path(place).name}"  # Where it lay says nothing elsewhere
    base = {key: first[key]["base"]["R@1"] for key in DIRECTIONS}
    out: dict[str, Any] = {**settings[0], "base": base, "beside": beside, "groups": {}}
    for name, group in every.items():
        out["groups"][name] = {
            key: recalls_of([e.metrics for e in group], key) for key in DIRECTIONS
        }
        if beside in ("", name):
            continue
        for before, after in zip(every[beside], every[name], strict=False):
            result = compare(before, after)
            for key in DIRECTIONS:
                told = {part: result[key][part]["R@1"] for part in ("difference", "interval")}
                out["groups"][name][key].setdefault("beside", []).append(told)
    return out


def recalls_of(metrics: list[dict[str, Any]], direction: str) -> dict[str, Any]:
    """R@1 of each seed before and after reranking, with mean and deviation of the latter."""
    before, after = (
        [one[direction][stage]["R@1"] for one in metrics] for stage in ("base", "reranked")
    )
    deviation = statistics.stdev(after) if len(after) > 1 else None
    mean = statistics.mean(after)
    return {"base R@1": before, "R@1": after, "mean": mean, "deviation": deviation}


def table(result: dict[str, Any]) -> Table:
    """A row for each run."""
    out = Table("", "place", *(f"{title}, R@1" for title in DIRECTIONS.values()))
    for name, group in result["groups"].items():
        for place in range(len(group["t2i"]["R@1"])):
            cells = []
            for key in DIRECTIONS:
                beside = group[key].get("beside", [])[place : place + 1]
                told = "".join(
                    f"  {d['difference']:+.1f} {format_interval(d['interval'])}" for d in beside
                )
                cells.append(f"{group[key]['R@1'][place]:.1f}{told}")
            out.add_row(name, str(place), *cells)
        means = [
            f"{group[key]['mean']:.1f} ± {group[key]['deviation'] or 0:.1f}" for key in DIRECTIONS
        ]
        out.add_row(name, "mean", *means, end_section=True)
    return out


if __name__ == "__main__":
    main()
