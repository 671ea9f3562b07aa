"""An evaluation of COCO's and of Flickr30k's size: time of its parts, and memory at the peak.

    python benchmarks/coco_shaped.py [--pairs 4096] [--k 10] [--out coco_shaped.json]

COCO: 5,000 pictures, 25,010 captions, MiniLM-L6. Flickr30k: 1,000 and 5,000, MiniLM-L12. Both have
64 tokens of 384 a picture, memory-mapped from a float16 file. Tokens, embeddings, captions and
weights are random: the recalls mean nothing and are left out, and image-to-text happens to ask for
no pair that text-to-image does not (real sets may: a fifth more at most). Everything but scoring
is done in full, in both directions, the TREC files included. With --pairs, so many of the pairs,
drawn at random, are scored and the others left at 0: the scoring time of all of them is the
measured rate times their number. Each shape runs in a process of its own, whose resident peak
counts the mapped pages too. That peak is this script's: `eval.py` holds a vision tower besides, and
float32 tokens, in memory up to 2 GB.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from edje_jax.allocator import keep_freed_memory
from edje_jax.config import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.data.buckets import bucket, lengths_up_to
from edje_jax.evaluation.intervals import gain_intervals
from edje_jax.evaluation.protocols import Timed
from edje_jax.evaluation.report import write_metrics
from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.inference.engine import PAIR_BATCHES, Engine
from edje_jax.inference.precision import compute_dtype
from edje_jax.models.edje import Edje

SHAPES = {"coco": (5000, 25_010, 6), "flickr30k": (1000, 5000, 12)}
"""Pictures, captions, layers of the joint encoder."""
TOKENS, WIDTH, EMBEDDING = 64, 384, 768
CLS, SEP = 101, 102


def main() -> None:
    """Measure both shapes, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=0, help="pairs to score; 0 scores all")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    # Here, as it brings PyTorch, which is no part of an evaluation's memory.
    from side_by_side import machine

    result: dict[str, Any] = {"machine": machine(), "k": options.k, "shapes": {}}
    # Others may work on the machine; then the times are theirs too, and memory alone counts.
    result["load_average_before"] = os.getloadavg()[0]
    for name in SHAPES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
            result["shapes"][name] = one.submit(measure, name, options.k, options.pairs).result()
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def measure(name: str, k: int, limit: int) -> dict[str, Any]:
    """One shape, start to end."""
    keep_freed_memory()  # As the programs do
    pictures, captions, layers = SHAPES[name]
    seconds: dict[str, float] = {}
    mark = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal mark
        seconds[what] = time.perf_counter() - mark
        mark = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        gallery = made_gallery(pictures, captions)
        images, texts = made_embeddings(rng, gallery)
        ids = made_captions(rng, captions)
        tokens = made_tokens(rng, Path(folder) / "tokens.npy", pictures)
        engine = made_engine(layers)
        lap("made up")
        warm(engine, ids, tokens)
        lap("compiled")
        score = Some(engine, ids, tokens, limit)
        timed = Timed(score)
        retrieval = rerank(gallery, images, texts, timed, k)
        lap("first stage and scoring")
        intervals = gain_intervals(retrieval, gallery)
        lap("intervals")
        out = Path(folder) / "eval"
        write_metrics(
            out,
            retrieval,
            gallery,
            model="random",
            data=name,
            seconds={},
            extra={"interval": intervals},
        )
        lap("files")
    rate = score.scored / score.seconds
    return {
        "pictures": pictures,
        "captions": captions,
        "joint_encoder": f"MiniLM-L{layers}-H384, random weights",
        "compute_dtype": str(jnp.dtype(engine.dtype)),
        "token_bytes": pictures * TOKENS * WIDTH * 2,
        "pairs": timed.pairs,
        "pairs_scored": score.scored,
        "pairs_per_second": rate,
        "ms_per_pair": 1e3 / rate,
        "hours_for_all_pairs": timed.pairs / rate / 3600,
        "seconds": {
            **{what: round(value, 2) for what, value in seconds.items()},
            "first stage": round(seconds["first stage and scoring"] - timed.seconds, 2),
            "scoring": round(score.seconds, 2),
        },
        "resident_peak_bytes": resident_peak(),
    }


class Some:
    """Scores all pairs, or so many drawn at random; the others are 0."""

    def __init__(self, engine: Engine, ids: np.ndarray, tokens: np.ndarray, limit: int):
        self.engine, self.ids, self.tokens, self.limit = engine, ids, tokens, limit
        self.scored, self.seconds = 0, 0.0

    def __call__(self, text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        out = np.zeros(len(text_index), np.float32)
        rows = np.arange(len(out))
        if 0 < self.limit < len(out):
            rows = np.sort(np.random.default_rng(1).choice(rows, self.limit, replace=False))
        began = time.perf_counter()
        out[rows] = self.engine.score_pairs(
            self.ids, self.tokens, text_index[rows], image_index[rows]
        )
        self.seconds += time.perf_counter() - began
        self.scored += len(rows)
        return out


def made_gallery(pictures: int, captions: int) -> Gallery:
    """Five captions a picture, and the rest of them to the first ones, as COCO has a few of six."""
    owner = np.sort(np.arange(captions) % pictures)
    return Gallery(
        [f"COCO_val2014_{i:012d}.jpg" for i in range(pictures)],
        [f"a caption of about fifty letters, number {t}" for t in range(captions)],
        owner,
    )


def made_embeddings(rng: np.random.Generator, gallery: Gallery) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors; a caption's lies near its picture's."""
    images = rng.normal(size=(len(gallery.image_ids), EMBEDDING)).astype(np.float32)
    noise = rng.normal(size=(len(gallery.captions), EMBEDDING)).astype(np.float32)
    texts = images[gallery.caption_image] + 3 * noise
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    return images, texts


def made_captions(rng: np.random.Generator, captions: int) -> np.ndarray:
    """Token ids of 8 to 20 words, about 1.2 pieces each."""
    ids = np.zeros((captions, 63), np.int32)
    for row in ids:
        pieces = int(rng.integers(8, 21) * 1.2)
        row[: pieces + 2] = [CLS, *rng.integers(1000, 30000, pieces), SEP]
    return ids


def made_tokens(rng: np.random.Generator, path: Path, pictures: int) -> np.ndarray:
    """A float16 file, written and mapped."""
    shape = (pictures, TOKENS, WIDTH)
    tokens = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for start in range(0, pictures, 250):
        rows = min(250, pictures - start)
        tokens[start : start + rows] = rng.normal(size=(rows, TOKENS, WIDTH))
    tokens.flush()
    del tokens
    return np.load(path, mmap_mode="r")


def made_engine(layers: int) -> Engine:
    """An EDJE of random weights; what scoring does not ask for is not there."""
    vision = VisionConfig(768, 3072, 12, 12, image_size=384, patch_size=16)
    config = EdjeConfig(
        BackboneConfig("siglip", vision, TextConfig(projection_size=EMBEDDING)),
        AdapterConfig("compress", TOKENS),
        BertConfig(num_hidden_layers=layers),
    )
    shapes = jnp.zeros((1, 576, 768)), jnp.ones((1, 3), jnp.int32)
    params = jax.jit(Edje(config).init)(jax.random.key(0), *shapes)["params"]
    nothing: Any = None
    return Engine(config, params, {}, nothing, nothing, compute_dtype("auto"))


def warm(engine: Engine, ids: np.ndarray, tokens: np.ndarray) -> None:
    """Compile every shape that scoring these captions will ask for."""
    lengths = lengths_up_to(engine.config.max_text_length)
    buckets = np.array([bucket(n, lengths) for n in np.count_nonzero(ids, axis=1)])
    for length in np.unique(buckets):
        row = np.flatnonzero(buckets == length)[0]
        for size in PAIR_BATCHES[jax.default_backend()]:
            engine.score_pairs(ids, tokens, np.full(size, row), np.zeros(size, np.int32))


def resident_peak() -> int:
    """Most bytes of memory that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def show(result: dict[str, Any]) -> None:
    """A line for each shape."""
    table = Table(
        "", "pairs", "scored", "ms a pair", "all pairs", "first stage", "intervals", "files", "peak"
    )
    for name, one in result["shapes"].items():
        seconds = one["seconds"]
        table.add_row(
            name,
            f"{one['pairs']:,}",
            f"{one['pairs_scored']:,}",
            f"{one['ms_per_pair']:.2f}",
            f"{one['hours_for_all_pairs']:.2f} h",
            *(f"{seconds[what]:.1f} s" for what in ("first stage", "intervals", "files")),
            f"{one['resident_peak_bytes'] / 1e9:.2f} GB",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
