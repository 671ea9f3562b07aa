"""An evaluation of COCO's and of Flickr30k's size: time of its parts, and memory at the peak.

    python benchmarks/coco_shaped.py [--pairs 4096] [--shapes coco] [--out coco_shaped.json]

COCO: 5,000 images, 25,010 captions, MiniLM-L6. Flickr30k: 1,000 and 5,000, MiniLM-L12. Both have
64 tokens of 384 an image, k = 10, both directions. What `eval.py` does after the images are
encoded is done by its own functions, and what it holds by then is held: a whole SigLIP2-B/16-384,
and the tokens in float32. Tokens, embeddings, captions and weights are random: the recalls mean
nothing and are left out, and image-to-text happens to ask for no pair that text-to-image does not
(real sets may: a fifth more at most). With --pairs, so many of the pairs, drawn at random, are
scored and the others left at 0: the time of all of them is the measured rate times their number.
Each shape runs in a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    ImageRecipe,
    TextConfig,
    VisionConfig,
)
from edje_jax.data.buckets import bucket, lengths_up_to
from edje_jax.evaluate.gallery import EncodedGallery
from edje_jax.evaluate.measure import Protocol, measure
from edje_jax.evaluation.retrieval import Gallery
from edje_jax.models.edje import Edje
from edje_jax.reports.evaluation_files import write_metrics
from edje_jax.runtimes.base import Embedded, TokenTable
from edje_jax.runtimes.devices import Compute
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.scoring import pair_batches
from edje_jax.system.allocator import give_back_freed_memory, keep_freed_memory
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.mapping import to_device

SHAPES = {"coco": (5000, 25_010, 6), "flickr30k": (1000, 5000, 12)}
"""Images, captions, layers of the joint encoder."""
BACKBONE = BackboneConfig(
    "siglip",
    VisionConfig(768, 3072, 12, 12, image_size=384, patch_size=16),
    TextConfig(256_000, 768, 3072, 12, 12, projection_size=768),
)
TOKENS, K = 64, 10
CLS, SEP = 101, 102


def main() -> None:
    """Measure the shapes, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=0, help="pairs to score; 0 scores all")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    # Here, as it brings PyTorch, which is no part of an evaluation's memory.
    from side_by_side import machine

    result: dict[str, Any] = {"machine": machine(), "k": K, "shapes": {}}
    for name in options.shapes:
        # Others may work on the machine; then the times are theirs too, and memory alone counts.
        load = [os.getloadavg()[0]]
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
            made = one.submit(evaluated, name, options.pairs).result()
        load.append(os.getloadavg()[0])
        made["load average at the start and the end, this work included"] = load
        result["shapes"][name] = made
    show(result)
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def evaluated(name: str, limit: int) -> dict[str, Any]:
    """Evaluate one shape from start to end."""
    keep_freed_memory()  # As the programs do
    images, captions, layers = SHAPES[name]
    seconds: dict[str, float] = {}
    mark = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal mark
        seconds[what] = round(time.perf_counter() - mark, 2)
        mark = time.perf_counter()

    rng = np.random.default_rng(0)
    encoded = made_gallery(rng, images, captions)
    runtime = made_runtime(layers, made_captions(rng, captions), made_texts(rng, encoded), limit)
    lap("made up")
    give_back_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")
    held = resident_peak()
    warm(runtime, encoded.tokens)
    lap("compiled")
    retrieval, extra = measure(runtime, encoded, Protocol(k=K))
    lap("measured")
    with tempfile.TemporaryDirectory() as folder:
        gallery = encoded.gallery
        about = {"model": "random", "data": name, "seconds": seconds, "extra": extra}
        write_metrics(folder, retrieval, gallery, **about)
    lap("files")
    spent = runtime.spent
    seconds["scoring"] = round(spent.seconds, 2)
    seconds["first stage, intervals, calibration"] = round(seconds["measured"] - spent.seconds, 2)
    rate = spent.scored / spent.seconds
    return {
        "pictures": images,
        "captions": captions,
        "backbone held": "SigLIP2-B/16-384, random weights",
        "joint_encoder": f"MiniLM-L{layers}-H384, random weights",
        "compute_dtype": str(runtime.scoring),
        "token_bytes": encoded.tokens.nbytes,
        "parameter_bytes": sum(
            leaf.nbytes for leaf in jax.tree.leaves((runtime.params, runtime.backbone_params))
        ),
        "pairs": spent.asked,
        "pairs_scored": spent.scored,
        "pairs_per_second": rate,
        "ms_per_pair": 1e3 / rate,
        "hours_for_all_pairs": spent.asked / rate / 3600,
        "seconds": seconds,
        "resident_bytes_before_compiling": held,
        "resident_peak_bytes": resident_peak(),
    }


@dataclass
class Spent:
    """Pairs that were asked for and scored, and the seconds that took."""

    asked: int = 0
    scored: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class MadeUp(JaxRuntime):
    """A runtime whose captions come tokenised and embedded, and which may score some pairs only."""

    texts: Any = None
    limit: int = 0
    spent: Any = None

    def encode_texts(self, captions: Any) -> Embedded:
        """Embeddings that were made up, without projections."""
        return Embedded(self.texts, np.empty((len(self.texts), 0), np.float32))

    def score_pairs(
        self,
        ids: np.ndarray,
        tokens: TokenTable,
        text_index: np.ndarray,
        image_index: np.ndarray,
        similarities: np.ndarray | None = None,
    ) -> np.ndarray:
        """All pairs, or an evenly drawn share of `limit` in all COCO's or Flickr30k's."""
        out = np.zeros(len(text_index), np.float32)
        rows = np.arange(len(out))
        if self.limit:
            total = len(ids) * K  # Image-to-text asks for no others
            wanted = min(round(self.limit * len(out) / total), len(out))
            rows = np.sort(np.random.default_rng(1).choice(rows, wanted, replace=False))
        began = time.perf_counter()
        out[rows] = super().score_pairs(ids, tokens, text_index[rows], image_index[rows])
        self.spent.seconds += time.perf_counter() - began
        self.spent.asked += len(out)
        self.spent.scored += len(rows)
        return out


def made_gallery(rng: np.random.Generator, images: int, captions: int) -> EncodedGallery:
    """Five captions an image, and the rest of them to the first ones, as COCO has a few of six."""
    gallery = Gallery(
        [f"COCO_val2014_{i:012d}.jpg" for i in range(images)],
        [f"a caption of about fifty letters, number {t}" for t in range(captions)],
        np.sort(np.arange(captions) % images),
    )
    tokens = rng.standard_normal((images, TOKENS, 384), np.float32)
    embeddings = rng.standard_normal((images, BACKBONE.text.projection_size), np.float32)
    none = np.empty((images, 0), np.float32)
    return EncodedGallery(gallery, list(range(images)), tokens, unit(embeddings), none)


def made_texts(rng: np.random.Generator, encoded: EncodedGallery) -> np.ndarray:
    """Embeddings of captions, each near its image's."""
    images = encoded.embeddings[encoded.gallery.caption_image]
    noise = rng.standard_normal(images.shape, np.float32) / images.shape[1] ** 0.5
    return unit(images + 3 * noise)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_captions(rng: np.random.Generator, captions: int) -> np.ndarray:
    """Token ids of 8 to 20 words, about 1.2 pieces each."""
    ids = np.zeros((captions, 63), np.int32)
    for row in ids:
        pieces = int(rng.integers(8, 21) * 1.2)
        row[: pieces + 2] = [CLS, *rng.integers(1000, 30000, pieces), SEP]
    return ids


def made_runtime(layers: int, ids: np.ndarray, texts: np.ndarray, limit: int) -> MadeUp:
    """An EDJE of random weights with all of its backbone."""
    config = EdjeConfig(
        BACKBONE, AdapterConfig("compress", TOKENS), BertConfig(num_hidden_layers=layers),
        image=ImageRecipe(size=384),
    )  # fmt: skip
    words, pixels = jnp.ones((1, 64), jnp.int32), jnp.zeros((1, 384, 384, 3))
    params = made_weights(Edje(config), jnp.zeros((1, 576, 768)), words[:, :3])
    backbone = made_weights(make_backbone(BACKBONE), pixels, words)
    tokenizers: tuple[Any, Any] = (lambda captions: ids), None
    return MadeUp(
        config, params, backbone, *tokenizers, Compute.of("auto"), Compute.of("auto"),
        texts=texts, limit=limit, spent=Spent(),
    )  # fmt: skip


def made_weights(module: Any, *inputs: Any) -> Any:
    """Small random numbers of a module's shapes: `init` would take memory that loading a
    model does not."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return to_device(
        jax.tree.map(lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), shapes)
    )


def warm(runtime: MadeUp, tokens: Any) -> None:
    """Compile every shape that scoring these captions will ask for."""
    ids = runtime.joint_tokenizer([])
    lengths = lengths_up_to(runtime.config.max_text_length)
    buckets = np.array([bucket(n, lengths) for n in np.count_nonzero(ids, axis=1)])
    for length in np.unique(buckets):
        row = np.flatnonzero(buckets == length)[0]
        for size in pair_batches():
            JaxRuntime.score_pairs(
                runtime, ids, tokens, np.full(size, row), np.zeros(size, np.int32)
            )


def resident_peak() -> int:
    """Most bytes of memory that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def show(result: dict[str, Any]) -> None:
    """A line for each shape."""
    table = Table("", "pairs", "scored", "ms a pair", "all pairs", "the rest", "files", "peak")
    for name, one in result["shapes"].items():
        seconds = one["seconds"]
        table.add_row(
            name,
            f"{one['pairs']:,}",
            f"{one['pairs_scored']:,}",
            f"{one['ms_per_pair']:.2f}",
            f"{one['hours_for_all_pairs']:.2f} h",
            f"{seconds['first stage, intervals, calibration']:.1f} s",
            f"{seconds['files']:.1f} s",
            f"{one['resident_peak_bytes'] / 1e9:.2f} GB",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
