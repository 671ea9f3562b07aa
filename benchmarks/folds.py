"""Cut a set into folds: of each a part to test on, a part to choose settings on, and the rest.

    python benchmarks/folds.py train.json val.json --folds 5 --out runs/folds
    python train.py tiny --data.train blip:runs/folds/0/train.json ...
    edje tune runs/0 --data blip:runs/folds/0/choose.json --save
    python eval.py runs/0 --data blip:runs/folds/0/test.json --out runs/0/eval

JSON as `blip:` reads it, [{"image", "caption"}, ...]. An image stands in one test part, and nothing
of it in that fold's other parts: records of one image are kept together. The draw is a function of
the seed and of the images' names alone.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

PARTS = ("train", "choose", "test")


def main() -> None:
    """Write OUT/0 to OUT/{folds - 1}, each with train.json, choose.json and test.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--choose", type=float, default=0.08, help="share of each fold's rest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--choose-without", type=Path, help="JSON of images that no choose part has"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    records = [record for path in options.sets for record in read(path, options.out)]
    barred = set()
    if options.choose_without:
        barred = {record["image"] for record in read(options.choose_without, options.out)}
    for fold, parts in enumerate(folds(records, options.folds, options.choose, options.seed)):
        parts = (parts[0], [one for one in parts[1] if one["image"] not in barred], parts[2])
        for name, part in zip(PARTS, parts, strict=True):
            path = options.out / str(fold) / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(part, ensure_ascii=False) + "\n", "utf-8")
        print(fold, *(f"{name} {len(part)}" for name, part in zip(PARTS, parts, strict=True)))


def read(path: Path, out: Path) -> list[dict[str, Any]]:
    """Records of a JSON, their images named relative to a fold's folder."""
    place = out.resolve() / "0"
    return [
        {**record, "image": os.path.relpath((path.parent / record["image"]).resolve(), place)}
        for record in json.loads(path.read_text("utf-8"))
    ]


def folds(
    records: list[dict[str, Any]], count: int, choose: float, seed: int
) -> list[tuple[list[dict[str, Any]], ...]]:
    """(train, choose, test) of each fold."""
    images = sorted({record["image"] for record in records})
    order = np.random.default_rng(seed).permutation(len(images))
    place = {images[image]: i for i, image in enumerate(order)}
    out = []
    for fold in range(count):
        rest = [p for p in range(len(images)) if p % count != fold]
        chosen = set(rest[: round(choose * len(rest))])
        parts: tuple[list[dict[str, Any]], ...] = ([], [], [])
        for record in records:
            at = place[record["image"]]
            parts[2 if at % count == fold else int(at in chosen)].append(record)
        out.append(parts)
    return out


if __name__ == "__main__":
    main()
