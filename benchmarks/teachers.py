"""First stages that learned from different teachers, beside each other and the backbone.

    python benchmarks/teachers.py --row none runs/n0 runs/n1 --row EDJE runs/e0 runs/e1 \
        --data blip:val.json [--pool blip:train.json] [--queries 500] [--out teachers.json]

A row has the workdirs of `train.py first_stage` for one choice of teachers, seed by seed; all on
one model. Recalls are those of embeddings alone, nothing is reranked; they are means over the
seeds. Gains are over the backbone's embeddings and over the first row, with 95% intervals from
images drawn anew.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from first_stage import Asked, Stage, mean, pooled, queries, trained
from named_runs import ROW, check_backbones, named_runs
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.evaluate.gallery import encode_gallery, open_gallery
from edje_jax.evaluation.retrieval import DIRECTIONS
from edje_jax.evaluation.tied_ranks import DEPTHS, ExpectedRecalls
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.training.tasks.first_stage import without_heads
from edje_jax.weights.folder import Model, load_model

BACKBONE = "backbone"

Recalls = dict[str, list[ExpectedRecalls]]
"""Recalls of the runs of a row, by direction."""


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", **ROW)
    parser.add_argument("--data", required=True, help="SPEC to ask with")
    parser.add_argument("--pool", help="SPEC whose images join the gallery")
    parser.add_argument("--queries", type=int, default=0, help="captions, and images; 0: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    runs = named_runs(parser, options.row)
    try:
        models = {name: opened(folders) for name, folders in runs.items()}
        first = next(iter(models.values()))[0]
        for name, each in models.items():
            check_backbones(runs[name], each, first)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    runtime = JaxRuntime.of(without_heads(first), "float32")
    encoded = encode_gallery(runtime, open_gallery(options.data, options.pool), 0.01)
    texts = runtime.embed_texts(encoded.gallery.captions)
    asked = queries(encoded, options.queries)
    plain = Stage(BACKBONE, texts, encoded.embeddings, 4 * texts.shape[1])
    rows = {BACKBONE: by_direction([plain], asked)}
    for name, each in models.items():
        # What `trained` gives first are embeddings; codes follow.
        stages = [next(trained(model, encoded, texts, seed)) for seed, model in enumerate(each)]
        rows[name] = by_direction(stages, asked)
    results = [summary(name, rows, asked) for name in rows]
    for direction in DIRECTIONS:
        Console().print(table(results, direction))
    if options.out:
        about = {
            "data": options.data, "pool": options.pool, "images": len(encoded.embeddings),
            "captions": len(asked.captions), "images_asked": len(asked.images),
            "runs": {name: [Path(one).name for one in each] for name, each in runs.items()},
            "machine": machine(),
        }  # fmt: skip
        options.out.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n", "utf-8")


def opened(folders: list[str]) -> list[Model]:
    """Models with heads of the first stage.

    Raises:
        ValueError: one has no such heads, or is no model.
        FileNotFoundError: there is none.
    """
    models = [load_model(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if model.heads is None:
            raise ValueError(f"{folder}: no heads of the first stage; train some on it")
    return models


def by_direction(stages: list[Stage], asked: Asked) -> Recalls:
    """Recalls of first stages."""
    found = [stage.recalls(asked) for stage in stages]
    return {direction: [one[direction] for one in found] for direction in DIRECTIONS}


def summary(name: str, rows: dict[str, Recalls], asked: Asked) -> dict[str, Any]:
    """Recalls of a row, and intervals of what it gains over the backbone and the first row."""
    image = {"t2i": asked.owner[asked.captions], "i2t": asked.images}
    _, first, *_ = rows
    out: dict[str, Any] = {"name": name}
    for direction in DIRECTIONS:
        own = rows[name][direction]
        out[direction] = {
            "mean": mean([run.recalls for run in own]),
            "by seed": [run.recalls for run in own],
            **{
                f"less {other}": gains(own, rows[other][direction], image[direction])
                for other in dict.fromkeys((BACKBONE, first))
                if other != name
            },
        }
    return out


def gains(
    own: list[ExpectedRecalls], other: list[ExpectedRecalls], image: np.ndarray
) -> dict[str, Any]:
    """Mean gains of recalls, and their intervals."""
    mine, theirs = pooled(own), pooled(other)
    intervals = mine.gain_intervals(theirs, image)
    return {
        depth: {"mean": mine.recalls[depth] - theirs.recalls[depth], "interval": list(interval)}
        for depth, interval in intervals.items()
    }


def table(results: list[dict[str, Any]], direction: str) -> Table:
    """Recalls of every row in one direction."""
    first = results[1]["name"]
    out = Table("teachers", *(f"R@{k}" for k in DEPTHS), "R@1 less backbone", f"less {first}")
    for row in results:
        side = row[direction]
        cells = [f"{side['mean'][f'R@{k}']:.1f}" for k in DEPTHS]
        for other in (BACKBONE, first):
            gain = side.get(f"less {other}", {}).get("R@1")
            cells.append(
                "{mean:+.1f} [{interval[0]:+.1f}, {interval[1]:+.1f}]".format(**gain)
                if gain
                else ""
            )
        out.add_row(row["name"], *cells)
    out.title = DIRECTIONS[direction]
    return out


if __name__ == "__main__":
    main()
