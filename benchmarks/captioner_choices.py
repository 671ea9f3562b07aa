"""Captioners with other settings beside each other: grids, sizes of the input, losses.

    python benchmarks/captioner_choices.py --row x1 runs/a0 runs/a1 --row x2 runs/b0 runs/b1 \
        --data shapes:test [--queries 500] [--k 50] [--out captioner_choices.json]

A row has the models of one setting, seed by seed. Each model reranks the k nearest candidates of
its own backbone by its own score, "pmi" of all directions that it reads. Recalls are means over the
seeds; intervals are of the difference to each row before, from images drawn anew (95%). A ceiling
is the share of queries that have a right answer among their candidates, on the mean of the runs.
Seconds are those of training, added up from each run's log; runs are comparable where nothing else
ran beside.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from captioner import DEPTHS, Asked, candidates, caption_scores
from jaxtyping import Float
from named_runs import ROW, named_runs
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.evaluate.gallery import encode_gallery, open_gallery
from edje_jax.evaluation.intervals import mean_intervals
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.types import Source
from edje_jax.weights.folder import load_model


@dataclass(frozen=True)
class Measured:
    """Hits of one model, 100 or 0, by direction and depth; and those of its backbone alone."""

    asked: dict[str, Asked]
    found: dict[str, Float[np.ndarray, "q d"]]
    base: dict[str, Float[np.ndarray, "q d"]]
    about: dict[str, Any]


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", **ROW)
    parser.add_argument("--data", required=True, help="SPEC to report on")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--queries", type=int, default=0, help="captions, and images; 0: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    runs_of = named_runs(parser, options.row)
    source = open_gallery(options.data, None)
    rows = {
        name: [measured(run, source, options.k, options.queries) for run in runs]
        for name, runs in runs_of.items()
    }
    results = [summary(name, rows) for name in rows]
    Console().print(table(results))
    if options.out:
        about = {"data": options.data, "k": options.k, "machine": machine(), "rows": results}
        options.out.write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def measured(run: str, source: Source, k: int, queries: int) -> Measured:
    """Rerank the candidates of a model's backbone by the model."""
    model = load_model(run)
    runtime = JaxRuntime.of(model, "float32")
    encoded = encode_gallery(runtime, source, 0.01)
    texts = runtime.embed_texts(encoded.gallery.captions)
    asked = candidates(encoded, texts, k, queries)
    found, base = {}, {}
    for direction, one in asked.items():
        scores = caption_scores(runtime, encoded, one.text.reshape(-1), one.image.reshape(-1))
        pmi = [each for name, each in scores.items() if name.endswith("pmi")][-1]
        found[direction] = one.found(pmi.reshape(one.text.shape))
        base[direction] = one.found(one.cosine)
    config = model.config
    about = {
        "image_size": config.image.size,
        "tokens": config.num_tokens,
        "upsampling": config.adapter.upsampling,
        "seconds": training_seconds(Path(run) / "metrics.jsonl"),
    }
    return Measured(asked, found, base, about)


def training_seconds(log: Path) -> float | None:
    """Seconds of a run's steps, from its log; None where there is none."""
    if not log.exists():
        return None
    seconds, before = 0.0, 0
    for line in map(json.loads, log.read_text("utf-8").splitlines()):
        if "steps_per_second" in line:
            seconds += (line["step"] - before) / line["steps_per_second"]
            before = line["step"]
    return seconds


def summary(name: str, rows: dict[str, list[Measured]]) -> dict[str, Any]:
    """Recalls of a row, and intervals of its R@1 less that of the rows before."""
    mine, names = rows[name], list(rows)
    before = names[: names.index(name)]
    out: dict[str, Any] = {"name": name, "runs": [one.about for one in mine]}
    for direction, asked in mine[0].asked.items():
        hits = np.mean([one.found[direction] for one in mine], axis=0)
        out[direction] = {
            **{f"R@{d}": float(x) for d, x in zip(DEPTHS, hits.mean(axis=0), strict=True)},
            "base R@1": float(np.mean([one.base[direction][:, 0].mean() for one in mine])),
            "R@1 by seed": [float(one.found[direction][:, 0].mean()) for one in mine],
            "queries": len(asked.owner),
            "ceiling": float(np.mean([one.asked[direction].ceiling for one in mine])),
            "R@1 less": {
                other: difference(hits, [one.found[direction] for one in rows[other]], asked.owner)
                for other in before
            },
        }
    return out


def difference(
    hits: Float[np.ndarray, "q d"], others: list[Float[np.ndarray, "q d"]], owner: np.ndarray
) -> dict[str, Any]:
    """R@1 of hits less the mean R@1 of other runs', and its interval."""
    gain = (hits - np.mean(others, axis=0))[:, :1]
    low, high = mean_intervals(gain, owner)[0]
    return {"mean": float(gain.mean()), "interval": [float(low), float(high)]}


def table(results: list[dict[str, Any]]) -> Table:
    """R@1 of every row in both directions."""
    each = ("base", "ceiling", "R@1", "less the first's")
    heads = [f"{direction} {what}" for direction in ("T2I", "I2T") for what in each]
    out = Table("row", "tokens", "seconds", *heads)
    for row in results:
        seconds = [one["seconds"] for one in row["runs"] if one["seconds"] is not None]
        cells = [row["name"], str(row["runs"][0]["tokens"])]
        cells.append(f"{np.mean(seconds):.0f}" if seconds else "")
        for direction in ("t2i", "i2t"):
            one = row[direction]
            cells += [f"{one[key]:.1f}" for key in ("base R@1", "ceiling", "R@1")]
            gain = next(iter(one["R@1 less"].values()), None)
            cells.append(
                "{mean:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}]".format(**gain)
                if gain
                else ""
            )
        out.add_row(*cells)
    return out


if __name__ == "__main__":
    main()
