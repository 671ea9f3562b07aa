"""Recall that is lost when tokens are stored in fewer bits.

    python benchmarks/token_dtypes.py MODEL [--data shapes:test] [--k 10] [--out token_dtypes.json]

The images are encoded once; their tokens go through each format of the store and are reranked.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluate.gallery import encode_gallery, evaluate
from edje_jax.models.token_formats import FORMATS, pack, unpack
from edje_jax.search.reranker import Reranker


def main() -> None:
    """Evaluate every format, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="model folder or training workdir")
    parser.add_argument("--data", default="shapes:test")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    reranker = Reranker.from_pretrained(options.model)
    encoded = encode_gallery(reranker.runtime, open_captioned(options.data), 0.01)
    _, count, width = encoded.tokens.shape
    rows = {"float32": (4 * count * width, encoded.tokens)}
    for dtype, form in FORMATS.items():
        kept = np.asarray(unpack(pack(encoded.tokens, dtype)), np.float32)
        rows[dtype] = (form.bytes_per_image(count, width), kept)
    table = Table("", "bytes an image", "T2I R@1", "I2T R@1")
    result: dict = {"model": options.model, "data": options.data, "k": options.k, "formats": {}}
    for name, (size, tokens) in rows.items():
        kept = dataclasses.replace(encoded, tokens=tokens)
        metrics = evaluate(reranker.runtime, kept, options.k).metrics()
        recalls = {way: metrics[way]["reranked"]["R@1"] for way in ("t2i", "i2t")}
        result["formats"][name] = {"bytes": size, **recalls}
        table.add_row(name, f"{size:,}", *(f"{value:.2f}" for value in recalls.values()))
    Console().print(table)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
