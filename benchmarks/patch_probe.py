"""Accuracy of a linear probe of a backbone's patch tokens on the built-in scenes.

    python benchmarks/patch_probe.py [BACKBONE_FOLDER] [--out probe.json]

A ridge regression from frozen vision tokens to one-hot attributes, fitted on training images
and scored on validation ones, over the patches that hold an object. A dual encoder can retrieve
well with tokens that do not know shapes, and then no joint encoder rises above it: this is the
check. The raw pixels of the same patches are probed beside it.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import edje_jax
from edje_jax.data.images import normalise, resize
from edje_jax.models.towers import patchify
from edje_jax.scenes.scene import ATTRIBUTES
from edje_jax.scenes.shapes import Shapes
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.families.registry import make_backbone

SHIPPED = Path(edje_jax.__file__).parent / "assets" / "shapes_backbone"


def main() -> None:
    """Probe, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("backbone", nargs="?", default=str(SHIPPED))
    parser.add_argument("--fit", type=int, default=1500, help="training images")
    parser.add_argument("--score", type=int, default=500, help="validation images")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    result = probe(options.backbone, options.fit, options.score)
    table = Table("attribute", "tokens", "raw pixels", "most frequent class", title="accuracy, %")
    for name, row in result.items():
        table.add_row(name, *(f"{row[k]:.1f}" for k in ("tokens", "pixels", "majority")))
    Console().print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def probe(folder: str, fit: int, score: int) -> dict[str, dict[str, float]]:
    """{attribute: {"tokens", "pixels", "majority"}}, accuracies in percent."""
    backbone = load_backbone(folder)
    model, grid = make_backbone(backbone.config), backbone.config.vision
    encode = jax.jit(lambda x: model.bind({"params": backbone.params}).encode_image(x).tokens)

    def read(split: str, count: int):
        source = Shapes(split, grid.image_size)
        picked = range(0, count * 3, 3) if split == "train" else range(count)
        pixels = np.stack([resize(source.image(i), backbone.image) for i in picked])
        pixels = np.asarray(normalise(pixels, backbone.image))
        tokens = np.concatenate([encode(pixels[i : i + 100]) for i in range(0, count, 100)])
        side = grid.image_size // grid.patch_size
        labels = np.stack([source.patch_labels(i, side) for i in picked]).reshape(-1, 4)
        patches = np.asarray(patchify(pixels, grid.patch_size))
        flat = [x.reshape(-1, x.shape[-1]) for x in (tokens, patches)]
        return flat, labels

    (tokens, pixels), labels = read("train", fit)
    (val_tokens, val_pixels), val_labels = read("val", score)
    out = {}
    for column, name in enumerate(ATTRIBUTES):
        have, val_have = labels[:, column] > 0, val_labels[:, column] > 0
        y, val_y = labels[have, column], val_labels[val_have, column]
        out[name] = {
            "tokens": _ridge(tokens[have], y, val_tokens[val_have], val_y),
            "pixels": _ridge(pixels[have], y, val_pixels[val_have], val_y),
            "majority": 100 * float((val_y == np.bincount(y).argmax()).mean()),
        }
    return out


def _ridge(x: np.ndarray, y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray) -> float:
    """Accuracy, in percent, of a ridge classifier with an intercept."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, val_x = (np.c_[(a - mean) / scale, np.ones(len(a))] for a in (x, val_x))
    target = np.eye(y.max() + 1)[y]
    weights = np.linalg.solve(x.T @ x + 10.0 * np.eye(x.shape[1]), x.T @ target)
    return 100 * float(((val_x @ weights).argmax(1) == val_y).mean())


if __name__ == "__main__":
    sys.exit(main())
