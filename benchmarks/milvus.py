"""Time and recall of a search in Milvus beside faiss' graph in this process, and the file's size.

    python benchmarks/milvus.py [--uri milvus:/tmp/bench.db] [--rows 100000] [--width 64]
        [--kinds HNSW FLAT] [--queries 200] [--k 100] [--filter-shares 0.5 0.01] [--out milvus.json]

Embeddings are drawn around centres, a thousand to each on average, as images of similar things
are. A filter lets that share of the rows through. The collection is new, and is deleted at the end.
"""

import argparse
import json
import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.first_stage.faiss import FaissFlat, FaissHnsw
from edje_jax.first_stage.milvus import MilvusCollection
from edje_jax.first_stage.milvus_address import MilvusAddress
from edje_jax.first_stage.milvus_vectors import VectorRows

BLOCK = 16_384
SPREAD = 1.5
"""Length of an embedding's own direction beside its centre's, of length 1."""


def main() -> None:
    """Measure every kind of index, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--uri", default="milvus:/tmp/edje-bench.db")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--kinds", nargs="+", choices=["HNSW", "FLAT", "IVF_FLAT"], default=["HNSW"]
    )
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--filter-shares", type=float, nargs="*", default=[0.5, 0.01])
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    drawn = clustered(options.rows + options.queries, options.width)
    rows, queries = drawn[: options.rows], drawn[options.rows :]
    results = [faiss_graph(rows, queries, options.k)]
    for kind in options.kinds:
        results += searched(options, kind, rows, queries)
    show(results)
    if options.out:
        packages = {name: version(name) for name in ("pymilvus", "milvus-lite", "faiss-cpu")}
        about = {"machine": machine(), "packages": packages, **vars(options), "results": results}
        Path(options.out).write_text(json.dumps(about, indent=2) + "\n")


def clustered(rows: int, width: int) -> np.ndarray:
    """Embeddings of unit length around centres."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(max(rows // 1000, 1), width)))
    own = unit(rng.normal(size=(rows, width)))
    return unit(centres[rng.integers(0, len(centres), rows)] + SPREAD * own).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def faiss_graph(rows: np.ndarray, queries: np.ndarray, k: int) -> dict[str, Any]:
    """Result of faiss in this process."""
    began = time.perf_counter()
    stage = FaissHnsw.build(rows)
    built = time.perf_counter() - began
    truth = FaissFlat.build(rows).nearest(queries, k).rows
    found = measured(lambda some: stage.nearest(some, k).rows, queries, truth)
    return {"engine": "faiss-hnsw", "rows let through": 1.0, "build seconds": built} | found


def searched(
    options: argparse.Namespace, kind: Any, rows: np.ndarray, queries: np.ndarray
) -> list[dict[str, Any]]:
    """Results of Milvus, without a filter and with each."""
    address = MilvusAddress.parse(options.uri)
    if address.is_file:
        shutil.rmtree(address.path, ignore_errors=True)
    identity = uuid.uuid4().hex
    began = time.perf_counter()
    with MilvusCollection.open(options.uri, identity, "embeddings") as collection:
        collection.sync(blocks(rows), {}, kind)
    built = time.perf_counter() - began
    held = sum(path.stat().st_size for path in address.path.rglob("*") if path.is_file())
    began = time.perf_counter()
    results = []
    with MilvusCollection.open(options.uri, identity, "embeddings") as collection:
        collection.nearest(queries[:1], options.k)
        opened = time.perf_counter() - began
        for share in (1.0, *options.filter_shares):
            let_through = np.flatnonzero(np.arange(options.rows) % 1000 < 1000 * share)
            nearest = FaissFlat.build(rows[let_through]).nearest(queries, options.k).rows
            where = f"place < {1000 * share:g}" if share < 1 else None

            def find(some: np.ndarray, where: str | None = where) -> np.ndarray:
                return collection.nearest(some, options.k, where).rows

            about = {"engine": f"Milvus {kind}", "rows let through": share, "build seconds": built}
            about |= {"bytes": held or None, "open seconds": opened}
            results.append(about | measured(find, queries, let_through[nearest]))
        collection.drop()
    return results


def blocks(rows: np.ndarray) -> Iterator[VectorRows]:
    """Rows for a collection, with a number from 0 to 999 that filters use."""
    for start in range(0, len(rows), BLOCK):
        some = rows[start : start + BLOCK]
        keys = np.arange(start, start + len(some), dtype=np.int64)
        places = {"place": (keys % 1000).tolist()}
        yield VectorRows(keys, [f"image-{key}" for key in keys], some, places)


def measured(
    find: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """Recall, milliseconds of single queries, and of each of 64 that are asked together."""
    single, found = [], []
    for start in range(len(queries)):
        began = time.perf_counter()
        found.append(find(queries[start : start + 1])[0])
        single.append(1000 * (time.perf_counter() - began))
    began = time.perf_counter()
    together = find(queries[:64])
    each = 1000 * (time.perf_counter() - began) / len(together)
    hits = [np.isin(right, own).mean() for right, own in zip(truth, found, strict=True)]
    return {
        "recall": float(np.mean(hits)),
        "milliseconds": statistics.median(single),
        "milliseconds, 90th percentile": float(np.percentile(single, 90)),
        "milliseconds each of 64": each,
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        "engine", "let through", "build s", "open s", "MB", "recall", "ms", "p90", "of 64"
    )
    for row in results:
        table.add_row(
            row["engine"],
            f"{row['rows let through']:.0%}",
            f"{row['build seconds']:.1f}",
            f"{row['open seconds']:.2f}" if "open seconds" in row else "",
            f"{row['bytes'] / 1e6:.0f}" if row.get("bytes") else "",
            f"{row['recall']:.4f}",
            f"{row['milliseconds']:.2f}",
            f"{row['milliseconds, 90th percentile']:.2f}",
            f"{row['milliseconds each of 64']:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
