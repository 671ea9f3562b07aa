"""Time of a query's parts against the number of images: first stage, gather, rerank.

    python benchmarks/search.py [--sizes 10000 100000 1000000] [--queries 20] [--out search.json]

Synthetic: random unit embeddings of width 768 and random tokens of 64 x 384 in bfloat16, both
memory-mapped from files as an index's are, k = 100, a MiniLM-L12 of random weights, one query at a
time. Token files are limited by --token-gigabytes: past it, as many rows as fit are read at random.
With --out, a plot lies beside.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from pairs import CONFIG, Pairs, runtime_of
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.first_stage.registry import find_first_stage
from edje_jax.models.token_formats import PackedTokens
from edje_jax.system.allocator import keep_freed_memory

WIDTH, K = 768, 100
ROW = 49_152


def main() -> None:
    """Measure every size, print a table, write JSON and a plot if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--first-stages", nargs="+", default=["exact", "faiss-flat", "faiss-hnsw"])
    parser.add_argument("--token-gigabytes", type=float, default=5.0)
    parser.add_argument("--folder", default="", help="where token files are made (default: /tmp)")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    keep_freed_memory()
    task = Pairs(1, K)
    runtime = runtime_of(task)
    result: dict[str, Any] = {"machine": machine(), "k": K, "width": WIDTH, "sizes": {}}
    for size in options.sizes:
        rng = np.random.default_rng(size)
        row: dict[str, Any] = {}
        with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
            embeddings = on_disk(Path(folder) / "embeddings.npy", unit(rng, size))
            for name in options.first_stages:
                if name == "faiss-hnsw" and size > 200_000:
                    continue  # Building it takes hours on two cores
                began = time.perf_counter()
                stage = find_first_stage(name).build(embeddings)
                stage.nearest(unit(rng, 1), K)
                row[f"{name} ready in seconds"] = time.perf_counter() - began
                row[name] = spread(partial(stage.nearest, unit(rng, 1), K), options.queries)
                del stage
        rows = min(size, int(options.token_gigabytes * 1e9 / ROW))
        row["rows of tokens"] = rows
        with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
            table = tokens_on_disk(Path(folder), rows, rng)
            chosen = [rng.choice(rows, K, replace=False) for _ in range(options.queries)]
            row["gather, disk"] = spread(taking(table, chosen), options.queries)
            if rows * ROW < 2e9:
                held = PackedTokens("bfloat16", {"tokens": np.array(table.columns["tokens"])})
                row["gather, host"] = spread(taking(held, chosen), options.queries)
            some = table[chosen[0]]
        rerank = partial(runtime.score_pairs, task.ids, some, np.zeros(K, np.int64), np.arange(K))
        row["rerank"] = spread(rerank, min(options.queries, 8))
        result["sizes"][size] = row
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
        plot(result, Path(options.out).with_suffix(".png"))


def unit(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Random unit vectors."""
    x = rng.standard_normal((rows, WIDTH), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def on_disk(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows [n, width] saved to a file and memory-mapped from it, as embeddings of an index are."""
    np.save(path, rows)
    return np.load(path, mmap_mode="r")


def tokens_on_disk(folder: Path, rows: int, rng: np.random.Generator) -> PackedTokens:
    """A memory-mapped token table as a store's shards are; one block of random rows repeated."""
    count, width = CONFIG.num_tokens, CONFIG.joint_encoder.hidden_size
    block = rng.standard_normal((1000, count, width), np.float32).astype(ml_dtypes.bfloat16)
    path = folder / "tokens.npy"
    table = np.lib.format.open_memmap(path, "w+", np.uint16, (rows, count, width))
    for start in range(0, rows, 1000):
        part = table[start : start + 1000]
        part[:] = block.view(np.uint16)[: len(part)]
    table.flush()
    values = np.load(path, mmap_mode="r").view(ml_dtypes.bfloat16)
    return PackedTokens("bfloat16", {"tokens": values})


def taking(table: PackedTokens, chosen: list[np.ndarray]) -> Callable[[], Any]:
    """Gathers another query's rows at each call."""
    order = iter(chosen * 2)
    return lambda: np.array(table[next(order)].columns["tokens"])


def spread(run: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds at the median and the 99th percentile; the first call is not counted."""
    run()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(1000 * (time.perf_counter() - began))
    return {"p50": float(np.percentile(taken, 50)), "p99": float(np.percentile(taken, 99))}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    names = list(dict.fromkeys(name for row in result["sizes"].values() for name in row))
    table = Table("milliseconds, p50 / p99", *(f"{size:,}" for size in result["sizes"]))
    for name in names:
        cells = []
        for row in result["sizes"].values():
            value = row.get(name)
            if isinstance(value, dict):
                cells.append(f"{value['p50']:.2f} / {value['p99']:.2f}")
            else:
                cells.append("" if value is None else f"{value:,.1f}")
        table.add_row(name, *cells)
    Console().print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    """Medians against the number of images, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = list(result["sizes"])
    _, axes = plt.subplots(figsize=(7, 4.2))
    for name in dict.fromkeys(n for row in result["sizes"].values() for n in row):
        points = [
            (size, row[name]["p50"])
            for size, row in result["sizes"].items()
            if isinstance(row.get(name), dict)
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="images", ylabel="milliseconds a query (median)")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    plt.tight_layout()
    plt.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
