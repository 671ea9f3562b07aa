"""Opening and first search of an index against its size; speed and recall of its first stages.

    python benchmarks/index_scale.py --images 10000000 --out DIR [--also 100000 1000000]
                                     [--stages codes faiss-ivf] [--width 128] [--queries 50]

An index of N images is written into DIR/index-N (once), and its first stages are built. All figures
come from a fresh process that may have 256 files open. Images are drawn around 10,000 centres on
the sphere, and so are the queries: independent Gaussian vectors have no near neighbours, which
defeats every approximate index. Tokens, captions and thumbnails are those of one shard, linked.
Codes are the signs of 256 random projections. DIR/index_scale.json and .png:

    {"images", "open_seconds", "open_anonymous_mb", "first_search_seconds", "next_search_seconds",
     "p50_ms": {stage: ...}, "recall_at_100": {stage: ...}, "built": {stage: ...}, "smaller": [...]}

"open_anonymous_mb" is the growth of RssAnon (memory that no file backs) while the index is opened.
A search is `search_images`: codes, rescoring by embeddings, reranking of 100 by a small joint
encoder of random weights; the process has been warmed as `edje serve` warms itself.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, BITS, CENTRES, SHARD, K = 128, 256, 10_000, 1 << 16, 100
SPREAD = 0.7
"""Length of what is added to a centre, which has length 1."""
FILES = 256


def main() -> None:
    """Measure every size, write JSON and a plot, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--also", type=int, nargs="*", default=[], help="smaller sizes")
    parser.add_argument("--stages", nargs="*", default=["codes", "faiss-ivf"])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [measured(images, options) for images in sorted({*options.also, options.images})]
    result = rows[-1] | {"smaller": rows[:-1]}
    (options.out / "index_scale.json").write_text(json.dumps(result, indent=2) + "\n")
    show(rows)
    plot(rows, options.out / "index_scale.png")


def measured(images: int, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of an index of so many images."""
    folder = options.out / f"index-{images}"
    fresh = multiprocessing.get_context("spawn")
    with fresh.Pool(1, maxtasksperchild=1) as pool:
        if not (folder / "manifest.json").exists():
            pool.apply(write_index, (folder, images, options.width))
        built = {name: pool.apply(build_stage, (folder, name)) for name in options.stages}
        return pool.apply(measure, (folder, options.stages, options.queries)) | {"built": built}


class Vectors:
    """Unit vectors around centres, in blocks that are the same every time."""

    def __init__(self, width: int):
        rng = np.random.default_rng(0)
        self.width = width
        self.centres = unit(rng.standard_normal((CENTRES, width)).astype(np.float32))
        self.kernel = rng.standard_normal((width, BITS)).astype(np.float32)

    def block(self, number: int, rows: int) -> np.ndarray:
        """Rows of a block; -1 has the queries."""
        rng = np.random.default_rng([1, number + 1])
        noise = rng.standard_normal((rows, self.width), np.float32)
        chosen = self.centres[rng.integers(CENTRES, size=rows)]
        return unit(chosen + noise * np.float32(SPREAD / self.width**0.5))

    def codes(self, rows: np.ndarray) -> np.ndarray:
        """Packed signs of random projections."""
        return np.packbits(rows @ self.kernel > 0, axis=1)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length."""
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def model_config(width: int) -> Any:
    """Small model; its backbone is not run."""
    from edje_jax.config import model

    text = model.TextConfig(projection_size=width)
    joint = model.BertConfig(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2,
    )  # fmt: skip
    return model.EdjeConfig(
        model.BackboneConfig("siglip", model.VisionConfig(image_size=32), text),
        model.AdapterConfig(num_tokens=4), joint, model.ImageRecipe(size=32),
        first_stage=model.FirstStageConfig((BITS,)),
    )  # fmt: skip


def write_index(folder: Path, images: int, width: int) -> None:
    """Write an index of images that nobody has seen, shard by shard."""
    from edje_jax.index.caption_columns import code_column_types
    from edje_jax.index.manifest import Manifest
    from edje_jax.index.row_lookup import look_up
    from edje_jax.index.shard_files import ImageRecord, file_entry, row_line, write_array

    folder.mkdir(parents=True, exist_ok=True)
    vectors, linked = Vectors(width), {}
    shards = []
    for number, start in enumerate(range(0, images, SHARD)):
        rows = min(SHARD, images - start)
        x = vectors.block(number, rows)
        own = {"embeddings": x, "codes": vectors.codes(x)}
        lines = folder / f"rows-{number:05d}.jsonl"
        with lines.open("wb") as file:
            for i in range(start, start + rows):
                name = f"{i // 1000:05d}/{i:09d}.jpg"
                path, captions = f"/photos/{name}", [f"photo {i}"]
                file.write(row_line(ImageRecord(name, path, captions, (0, 0), "", "")))
        own |= look_up(lines)._asdict()
        for kind, array in own.items():
            write_array(folder / f"{kind}-{number:05d}.npy", array)
        names = {f"{kind}-{number:05d}.npy" for kind in own} | {lines.name}
        files = {name: file_entry(folder / name) for name in sorted(names)}
        same = {
            "tokens": np.zeros((rows, 4, 32), np.uint16),
            "captions": x,
            "caption_codes": own["codes"],
        }
        for kind, array in same.items():
            path = folder / f"{kind}-{number:05d}.npy"
            if (first := linked.get((kind, rows))) is None:
                write_array(path, array)
                linked[kind, rows] = first = (path, file_entry(path))
            else:
                path.unlink(missing_ok=True)
                os.link(first[0], path)
            files[path.name] = first[1]
        thumbnails = folder / f"thumbnails-{number:05d}.bin"
        thumbnails.write_bytes(b"")
        files[thumbnails.name] = file_entry(thumbnails)
        shards.append({"number": number, "rows": rows, "captions": rows, "files": files})
    stamp = {"fingerprint": "0" * 32, "source": "none", "code_lengths": [BITS]}
    columns = code_column_types(BITS)
    Manifest(stamp, "bfloat16", 4, 32, width, "none", tuple(shards), columns=columns).write(folder)


def build_stage(folder: Path, name: str) -> dict[str, Any]:
    """Seconds of the build of a first stage, and what its stamp says."""
    from edje_jax.index.first_stages import extend_first_stage
    from edje_jax.index.store import Store

    began = time.perf_counter()
    stamp = extend_first_stage(Store(folder), name, "embeddings")
    return {
        "seconds": time.perf_counter() - began,
        "bytes": stamp.file["bytes"],
        "effort": stamp.effort,
        "recall_at_100": stamp.recall_at_100,
        "asked_by": stamp.asked_by,
    }


def anonymous_mb() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def measure(folder: Path, stages: list[str], count: int) -> dict[str, Any]:
    """Figures of an index, in a process that has done nothing else."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    from side_by_side import machine

    from edje_jax.index.image_index import ImageIndex
    from edje_jax.index.recall import recall

    facts = machine()
    base, began = anonymous_mb(), time.perf_counter()
    index = ImageIndex.open(folder, first_stage="codes", bits=BITS)
    out: dict[str, Any] = {
        "images": len(index),
        "open_seconds": time.perf_counter() - began,
        "open_anonymous_mb": anonymous_mb() - base,
    }
    vectors = Vectors(index.store.manifest.embedding_size)
    queries = vectors.block(-1, count)
    asking, times = Asking(vectors, queries), []
    asking.warm(index)
    for number in range(count):
        began = time.perf_counter()
        asking.search(index, number)
        times.append(time.perf_counter() - began)
    out |= {"first_search_seconds": times[0], "next_search_seconds": float(np.median(times[1:]))}
    exact = ImageIndex.open(folder).searched_images
    truth, _ = exact.candidates(queries, np.empty((count, 0), np.float32), K)
    p50, recalls, memory = {}, {}, {}
    for name in stages:
        opened = ImageIndex.open(folder, first_stage=name)
        before = anonymous_mb()
        stage = opened.images
        asked = vectors.codes(queries) if opened.bits else queries
        stage.nearest(asked[:1], K)
        p50[name] = median_ms(stage, asked)
        memory[name] = anonymous_mb() - before
        if opened.bits:
            projected = queries @ vectors.kernel
            near, _ = opened.searched_images.candidates(queries, projected, K)
            recalls[f"{name}, {10 * K} rescored"] = recall(truth, near)
        else:
            recalls[name] = recall(truth, stage.nearest(asked, K))
    p50["exact"] = median_ms(exact.stage, queries[:7])
    return out | {
        "p50_ms": p50, "recall_at_100": recalls, "stage_anonymous_mb": memory, "files": FILES,
        "embeddings_gb": index.store.embeddings.shape[0] * vectors.width * 4 / 1e9,
        "machine": facts,
    }  # fmt: skip


def median_ms(stage: Any, queries: np.ndarray) -> float:
    """Median milliseconds of a query."""
    times = []
    for query in queries:
        began = time.perf_counter()
        stage.nearest(query[None], K)
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times))


def ids_of(texts: Any) -> Any:
    """Tokenizer to twelve ids, padded as a model's are."""
    ids = np.zeros((len(texts), 64), np.int32)
    ids[:, :12] = 1
    return ids


class Asking:
    """Searches whose queries are vectors, by a runtime of which the joint encoder alone is run."""

    def __init__(self, vectors: Vectors, queries: np.ndarray):
        import jax
        import jax.numpy as jnp

        from edje_jax.models.edje import Edje
        from edje_jax.runtimes.base import Embedded
        from edje_jax.runtimes.devices import Compute
        from edje_jax.runtimes.jax import JaxRuntime

        config = model_config(vectors.width)
        vision = config.backbone.vision.hidden_size
        shapes = jnp.zeros((1, config.backbone.num_vision_tokens, vision)), jnp.ones((1, 3), int)
        params = jax.jit(Edje(config).init)(jax.random.key(0), *shapes)["params"]
        none: Any = None

        class OfVectors(JaxRuntime):
            """A text is the number of a query."""

            def encode_texts(self, captions: Any) -> Embedded:
                asked = queries[[int(text) if text.isdecimal() else 0 for text in captions]]
                return Embedded(asked, asked @ vectors.kernel)

        self.runtime = OfVectors(config, params, {}, ids_of, none, Compute.of("auto"))

    def warm(self, index: Any) -> None:
        """Open the first stage and compile, as `edje serve` does before it is ready."""
        self.runtime.warm(index.tokens)
        searched = index.searched_images
        searched.stage.nearest(np.zeros((1, BITS // 8), np.uint8), searched.depth(K))

    def search(self, index: Any, number: int) -> None:
        """Search with one query."""
        from edje_jax.search.cascade import search_images

        search_images(self.runtime, index, [str(number)], K)


def show(rows: list[dict[str, Any]]) -> None:
    """Print a table, in the form of the documentation."""
    names = [*rows[-1]["p50_ms"]]
    head = ["images", "open, s", "anonymous MB", "first search, s", "next, s"]
    print("| " + " | ".join([*head, *(f"{name}, ms" for name in names)]) + " | recall@100 |")
    print("|" + "---|" * (len(head) + len(names) + 1))
    for row in rows:
        cells = [f"{row['images']:,}", f"{row['open_seconds']:.2f}"]
        cells += [f"{row['open_anonymous_mb']:.0f}", f"{row['first_search_seconds']:.3f}"]
        cells += [f"{row['next_search_seconds']:.3f}"]
        cells += [f"{row['p50_ms'][name]:.1f}" for name in names]
        recalls = ", ".join(f"{name} {x:.3f}" for name, x in row["recall_at_100"].items())
        print("| " + " | ".join([*cells, recalls]) + " |")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Opening time and memory, and milliseconds of every stage, against the number of images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [row["images"] for row in rows]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    left.plot(sizes, [row["open_seconds"] for row in rows], "o-")
    left.set(title="opening, seconds", ylim=(0, 2))
    middle.plot(sizes, [row["open_anonymous_mb"] for row in rows], "o-")
    middle.set(title="anonymous memory of opening, MB", ylim=(0, 500))
    for name in rows[-1]["p50_ms"]:
        known = [row for row in rows if name in row["p50_ms"]]
        x, y = [row["images"] for row in known], [row["p50_ms"][name] for row in known]
        right.plot(x, y, "o-", label=name)
    right.set(title="first stage, median ms a query", yscale="log")
    right.legend()
    for axes in (left, middle, right):
        axes.set(xscale="log", xlabel="images")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
