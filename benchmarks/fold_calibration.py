"""Calibration on unseen images: fitted in a small gallery, and in the gallery that is searched.

    python benchmarks/fold_calibration.py runs/0 runs/1 --data "blip:runs/folds/{}/test.json" \
        [--k 50] [--out calibration.json]

For each run ({} is the name of its folder) two calibrations are judged by the queries of its test
set: the one that `edje tune --save` left in the model folder, fitted on another, usually smaller
gallery; and one fitted on half of the test set's images, judged by the other half, both halves
searching the whole test set. Printed are the expected calibration error of all candidates, and how
many of the results are right that reach the least score chosen for a precision of 0.9.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rerank_depth import retrieved

from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.calibration import calibrate, direction_reliability, precision_above
from edje_jax.evaluation.retrieval import DIRECTIONS, Direction, Retrieval
from edje_jax.search.reranker import Reranker

PRECISION = 0.9


def main() -> None:
    """Judge every run, print a line per fit and direction, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True, help="SPEC, {} standing for the run's name")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    results = {}
    for model in options.models:
        name = Path(model).name
        reranker = Reranker.from_pretrained(model)
        retrieval, *owners = retrieved(reranker, options.data.format(name), 0, options.k)
        images = dict(zip(DIRECTIONS, owners, strict=True))
        results[name] = {
            "small gallery": judged(retrieval, reranker.calibration),
            "searched gallery": by_halves(retrieval, images),
        }
        for fit, sides in results[name].items():
            for key, side in sides.items():
                print(name, fit, key, *(f"{n} {v:.3f}" for n, v in side.items()))
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=1) + "\n")


def judged(retrieval: Retrieval, calibration: Calibration) -> dict[str, dict[str, float]]:
    """{direction: {"ece", "precision", "recall", "empty"}}; the last three in percent, and only
    where there is a least score."""
    out = {}
    for key in DIRECTIONS:
        direction = getattr(retrieval, key)
        out[key] = {
            "plain_ece": direction_reliability(direction)["ece"],
            "ece": direction_reliability(direction, calibration)["ece"],
        }
        if calibration.least_score is not None:
            out[key] |= precision_above(direction, calibration, calibration.least_score)
    return out


def by_halves(
    retrieval: Retrieval, images: dict[str, np.ndarray], seed: int = 0
) -> dict[str, dict[str, float]]:
    """`judged` by each half of the images with the fit of the other, averaged."""
    most = max(int(numbers.max()) for numbers in images.values())
    side = np.random.default_rng(seed).permutation(most + 1) % 2
    judgements = []
    for half in (0, 1):
        fitted, kept = (
            part(retrieval, {key: side[numbers] == which for key, numbers in images.items()})
            for which in (1 - half, half)
        )
        owners = (images[key][side[images[key]] == 1 - half] for key in DIRECTIONS)
        judgements.append(judged(kept, calibrate(fitted, *owners, PRECISION)))
    return {
        key: {
            name: float(np.mean([one[key][name] for one in judgements if name in one[key]]))
            for name in {**judgements[0][key], **judgements[1][key]}
        }
        for key in DIRECTIONS
    }


def part(retrieval: Retrieval, queries: dict[str, np.ndarray]) -> Retrieval:
    """Keep some of the queries of both directions."""
    kept: dict[str, Any] = {}
    for key, chosen in queries.items():
        direction: Direction = getattr(retrieval, key)
        fields = {f.name: getattr(direction, f.name)[chosen] for f in dataclasses.fields(direction)}
        kept[key] = Direction(**fields)
    return dataclasses.replace(retrieval, **kept)


if __name__ == "__main__":
    main()
