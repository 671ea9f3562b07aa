"""Time of a search among binary codes: XOR and a count of bits, int8 products, NumPy, faiss.

    python benchmarks/hamming.py [--sizes 100000] [--bits 64 256 2048] [--queries 1 64] [--k 100]
        [--rounds 5] [--ways popcount product numpy faiss] [--out hamming.json]

Random codes, the ways in turns. Popcount and product are jitted for JAX's device; NumPy and faiss
compute on the CPU. All find the same rows in the same order, which is checked before any is timed.
"""

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import machine, ratios, timed

from edje_jax.first_stage.codes import Codes

WAYS = ("popcount", "product", "numpy", "faiss")


def main() -> None:
    """Measure every size, length and batch of queries, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000])
    parser.add_argument("--bits", type=int, nargs="+", default=[64, 256, 2048])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for bits in options.bits:
            rng = np.random.default_rng(0)
            codes = rng.integers(0, 256, (size, bits // 8), np.uint8)
            stages = {way: Codes(codes, way) for way in options.ways}
            for count in options.queries:
                queries = rng.integers(0, 256, (count, bits // 8), np.uint8)
                setting = {"codes": size, "bits": bits, "queries": count}
                rows.append(setting | measured(stages, queries, options.k, options.rounds))
    show(rows, options.ways)
    if options.out:
        about = {"machine": machine(), "k": options.k, "rounds": options.rounds, "rows": rows}
        Path(options.out).write_text(json.dumps(about, indent=2) + "\n")


def measured(stages: dict[str, Codes], queries: np.ndarray, k: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, and how many times as long as the first of them it takes."""
    first, *others = (stage.nearest(queries, k) for stage in stages.values())
    for found in others:
        np.testing.assert_array_equal(found.rows, first.rows)
        np.testing.assert_array_equal(found.similarities, first.similarities)
    sides = {way: partial(stage.nearest, queries, k) for way, stage in stages.items()}
    seconds = timed(sides, rounds, warm=True)
    return {
        "milliseconds": {
            way: {
                "median": 1000 * statistics.median(values),
                "least": 1000 * min(values),
                "most": 1000 * max(values),
            }
            for way, values in seconds.items()
        },
        "times as long": ratios(seconds, next(iter(stages))),
    }


def show(rows: list[dict[str, Any]], ways: list[str]) -> None:
    """Print the table."""
    table = Table("codes", "bits", "queries", *(f"{way}, ms" for way in ways))
    for row in rows:
        cells = [
            f"{row['milliseconds'][way]['median']:.2f} ({row['times as long'][way]:.2f}x)"
            for way in ways
        ]
        table.add_row(f"{row['codes']:,}", str(row["bits"]), str(row["queries"]), *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
