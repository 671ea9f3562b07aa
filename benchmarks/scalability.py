"""Build, search time, recall and bytes of indexes of floats and codes, as FiCo-ITR measures them.

    python benchmarks/scalability.py [--sizes 5k,50k,500k,5m] [--bits 64,256,2048]
        [--index flat,hnsw,binary-flat,binary-ivf,binary-hnsw] [--graphs-up-to 500k]
        [--width 256] [--queries 1000] [--model shapes-demo] [--spec shapes:train]
        [--embeddings FILE.npy] [--out DIR]

Vectors are synthetic, of unit length, made block by block: those of a smaller size are the first
of a larger one, and they are never in memory all at once but in a graph of float32 vectors. Their
codes are the signs of random projections. R@k: the share of queries whose exact nearest vector, by
inner product, is among the first k that an index finds. All queries are asked at once for 1,000
vectors; what takes less than a second is asked three times, and the median counts. --spec adds the
embeddings of a set's images by the model, asked with its captions; --embeddings those of a file,
asked with its last rows. The model also encodes and reranks a little, and what it would take for
FiCo-ITR's sizes is computed from that. DIR gets scalability.json, again after every size, and
scalability.png; `scalability_report.py` turns the JSON into the page's tables.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from pairs import CONFIG
from rich.console import Console
from scalability_costs import rates, storage
from scalability_indexes import BINARY, BLOCK, K, StreamedFlat, hnsw
from scalability_report import plot, show
from side_by_side import machine

from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluate.gallery import encode_gallery
from edje_jax.first_stage.packing import pack
from edje_jax.first_stage.untrained import random
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import keep_freed_memory

PROJECTED = 8192
"""Vectors projected at once."""
QUERIES = 1 << 40
"""Block of the synthetic queries, beyond every block of vectors."""
INTRINSIC = 10
DEPTHS = (1, 100, 1000)
FLOATS = ("flat", "hnsw")


@dataclass(frozen=True)
class Base:
    """Vectors to search, float32 and of unit length, in blocks of `BLOCK`."""

    name: str
    size: int
    queries: np.ndarray
    blocks: Callable[[], Iterator[np.ndarray]]
    like_queries: np.ndarray | None = None
    """Other vectors such as queries are, where those differ from the vectors searched."""


class Synthetic:
    """Unit vectors of ten intrinsic dimensions, a function of the seed and their block.

    faiss describes such vectors as its `SyntheticDataset` (faiss/contrib/datasets.py): normal
    variables of few dimensions, mixed into many, stretched there, and bent by a sine. Theirs are
    made all at once, in float64, and have no unit length.
    """

    def __init__(self, width: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        stretch = 0.1 + 4 * rng.random(width)
        self._mixing = (rng.random((INTRINSIC, width)) * stretch).astype(np.float32)
        self._seed = seed

    def block(self, number: int, rows: int = BLOCK) -> np.ndarray:
        """First rows of a block, float32 [rows, width]."""
        rng = np.random.default_rng([self._seed, number])
        x = rng.standard_normal((rows, INTRINSIC), np.float32) @ self._mixing
        return unit(np.sin(x, out=x))

    def base(self, size: int, queries: int) -> Base:
        """So many vectors and queries."""

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, size, BLOCK):
                yield self.block(start // BLOCK, min(BLOCK, size - start))

        return Base("synthetic", size, self.block(QUERIES, queries), blocks)


def main() -> None:
    """Measure every size, index and length, print tables, write JSON and a plot if asked to."""
    options = parser().parse_args()
    keep_freed_memory()
    began = time.perf_counter()
    reranker = Reranker.from_pretrained(options.model)
    result: dict[str, Any] = {
        "machine": machine(), "threads": faiss.omp_get_max_threads(),
        "faiss": faiss.__version__, "width": options.width, "queries": options.queries, "k": K,
        "rows": [], "left_out": [], "sets": [],
        "storage": {options.model: storage(reranker.config), "of full size": storage(CONFIG)},
        "rates": rates(reranker, options.model),
    }  # fmt: skip
    for base in bases(options, reranker):
        study(base, options, result)
        result["seconds"] = time.perf_counter() - began
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            file = options.out / "scalability.json"
            file.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    if options.out:
        plot(options.out / "scalability.png", result)


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--sizes", type=numbers, default=numbers("5k,50k,500k,5m"))
    made.add_argument("--bits", type=numbers, default=numbers("64,256,2048"))
    made.add_argument("--index", type=indexes, default=[*FLOATS, *BINARY])
    made.add_argument(
        "--graphs-up-to", type=number, default=500_000, help="size of hnsw and binary-hnsw"
    )
    made.add_argument("--width", type=int, default=256, help="of synthetic vectors")
    made.add_argument("--queries", type=int, default=1000)
    made.add_argument("--model", default="shapes-demo")
    made.add_argument("--spec", help="set whose images' embeddings are searched too")
    made.add_argument("--embeddings", type=Path, help=".npy of embeddings to search too")
    made.add_argument("--out", type=Path, help="folder for the JSON file and the plot")
    return made


def number(text: str) -> int:
    """A number such as 500k or 5m."""
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    return int(float(text[:-1] if factor > 1 else text) * factor)


def numbers(text: str) -> list[int]:
    """Numbers between commas, rising."""
    return sorted(number(part) for part in text.split(","))


def indexes(text: str) -> list[str]:
    """Names of indexes between commas.

    Raises:
        ValueError: one is unknown.
    """
    names = text.split(",")
    if unknown := [name for name in names if name not in (*FLOATS, *BINARY)]:
        raise ValueError(unknown)
    return names


def bases(options: argparse.Namespace, reranker: Reranker) -> Iterator[Base]:
    """Synthetic vectors of every size, then the real ones that were asked for."""
    # Opened before anything is measured, so that a wrong name is told at once.
    source = open_captioned(options.spec) if options.spec else None
    rows = np.load(options.embeddings, mmap_mode="r") if options.embeddings else None
    synthetic = Synthetic(options.width)
    for size in options.sizes:
        yield synthetic.base(size, options.queries)
    if source is not None:
        encoded = encode_gallery(reranker.runtime, source, 0.01)
        captions = encoded.gallery.captions
        drawn = np.random.default_rng(0).permutation(len(captions))[: 2 * options.queries]
        texts = reranker.runtime.embed_texts([captions[i] for i in drawn])
        asked, others = np.array_split(texts, 2)
        yield stored(f"{options.spec} by {options.model}", encoded.embeddings, asked, others)
    if rows is not None:
        asked = unit(np.array(rows[-options.queries :], np.float32))
        yield stored(options.embeddings.name, rows[: -options.queries], asked)


def stored(
    name: str, rows: np.ndarray, queries: np.ndarray, like_queries: np.ndarray | None = None
) -> Base:
    """Vectors that lie in memory or a file."""

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(rows), BLOCK):
            yield unit(np.array(rows[start : start + BLOCK], np.float32))

    return Base(name, len(rows), queries, blocks, like_queries)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows, in place, of unit length."""
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(1e-30))
    return x


def study(base: Base, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Measure all indexes over a base; rows, and what was left out, join the result."""
    k, width = min(K, base.size), base.queries.shape[1]
    flat = StreamedFlat(base.queries, k)
    graph = hnsw(width) if wanted(base, "hnsw", None, options, result) else None
    codes = np.empty((base.size, max(options.bits) // 8), np.uint8)
    heads, start, took = None, 0, {"make_seconds": 0.0, "code_seconds": 0.0}
    began = time.perf_counter()
    for block in base.blocks():
        took["make_seconds"] += time.perf_counter() - began
        flat.add(block, start)
        if graph:
            graph.add(block)
        began = time.perf_counter()
        if heads is None:
            like_queries = block if base.like_queries is None else base.like_queries
            heads = random(block, like_queries, max(options.bits), 0)
        codes[start : start + len(block)] = encode(heads.project_images, block)
        took["code_seconds"] += time.perf_counter() - began
        start += len(block)
        began = time.perf_counter()
    assert heads
    result["sets"].append({"vectors": base.name, "size": base.size, "width": width, **took})

    def keep(name: str, bits: int | None, measured: dict[str, Any]) -> None:
        found = measured.pop("found")
        about = {"vectors": base.name, "size": base.size, "index": name, "bits": bits}
        ms = {"ms_a_query": 1000 * measured["search_seconds"] / len(found)}
        row = about | measured | ms | recalls(found, flat.rows[:, :1])
        result["rows"].append(row)
        Console().print(row)

    if "flat" in options.index:
        keep("flat", None, flat.measured())
    if graph:
        keep("hnsw", None, graph.measured(base.queries, k))
        del graph
    asked = encode(heads.project_texts, base.queries)
    for bits in options.bits:
        part, ask = (np.ascontiguousarray(x[:, : bits // 8]) for x in (codes, asked))
        for name in BINARY:
            if wanted(base, name, bits, options, result):
                index = BINARY[name](part)
                index.add(part)
                keep(name, bits, index.measured(ask, k))
                del index


def wanted(
    base: Base, name: str, bits: int | None, options: argparse.Namespace, result: dict[str, Any]
) -> bool:
    """Whether an index is asked for and not too large for a graph; if it is, the result says so."""
    if name not in options.index:
        return False
    if "hnsw" not in name or base.size <= options.graphs_up_to:
        return True
    why = f"graphs are built up to {options.graphs_up_to:,} vectors (--graphs-up-to)"
    about = {"vectors": base.name, "size": base.size, "index": name, "bits": bits, "why": why}
    result["left_out"].append(about)
    Console().print({"left out": about})
    return False


def encode(project: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Packed codes of vectors, a few at a time so that projections stay small."""
    starts = range(0, len(x), PROJECTED)
    return np.concatenate([pack(project(x[start : start + PROJECTED])) for start in starts])


def recalls(found: np.ndarray, nearest: np.ndarray) -> dict[str, float]:
    """Percent of queries whose exact nearest [q, 1] is among the first that were found [q, k]."""
    return {f"R@{k}": 100 * float((found[:, :k] == nearest).any(axis=1).mean()) for k in DEPTHS}


if __name__ == "__main__":
    main()
