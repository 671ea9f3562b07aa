"""Images per second from every kind of source, beside PyTorch's DataLoader with webdataset.

    python benchmarks/data.py [--images 512] [--rounds 3] [--out data.json]

Synthetic JPEGs of 640 x 480 pixels are written in every format. Each side then delivers all of them
shuffled, decoded by Pillow and warped to 384 px, in batches of 32; captions are tokenised on our
sides only. They take turns, each making two passes, of which the second counts. "read" is a
shuffled order of reads without decoding, files in the page cache. Needs `pip install webdataset`.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
import torch
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table
from side_by_side import machine, timed

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.bad_records import BadRecords
from edje_jax.data.exclusion import BYTES, _hash_into
from edje_jax.data.images import file_bytes
from edje_jax.data.loader import RowRecipe, TrainingBatches, iterate
from edje_jax.data.pack import pack
from edje_jax.data.sources import tar_index
from edje_jax.data.sources.registry import open_source
from edje_jax.data.text import BackboneTokenizer
from edje_jax.types import Source

SIDE, BATCH, WORKERS = 384, 32, 2
GROUP = 100
"""Rows in a row group of the Parquet file, as hub sets of images have them."""


def main() -> None:
    """Write the sets, time all sides, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help=f"a multiple of {BATCH}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        jpegs = [jpeg(seed) for seed in range(options.images)]
        specs = write_sets(Path(temporary), jpegs)
        sources = {kind: open_source(spec) for kind, spec in specs.items()}
        blip = sources["blip"]
        hashes = np.zeros((len(blip), BYTES), np.uint8)
        seconds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, run in sides(sources, Path(temporary)).items():
                seconds.setdefault(name, []).append(second_pass(run, options.images))
        others = timed(
            {
                "hash (--data.exclude)": lambda: _hash_into(
                    hashes, blip, np.arange(len(blip)), "blip"
                ),
                "index tars": lambda: [tar_index.build(tar) for tar in tars(Path(temporary))],
                **{f"read {kind}": reading(source) for kind, source in sources.items()},
            },
            options.rounds,
        )
    load.append(os.getloadavg()[0])
    rates = {name: rate(options.images, taken) for name, taken in {**seconds, **others}.items()}
    table = Table("", "images/s", "slowest to fastest")
    for name, row in rates.items():
        table.add_row(name, f"{row['median']:,.0f}", f"{row['least']:,.0f} to {row['most']:,.0f}")
    Console().print(table)
    if options.out:
        result = {
            "machine": machine(),
            "webdataset": webdataset.__version__,
            "load average at the start and the end, this work included": load,
            "pictures": options.images,
            "mean bytes": statistics.mean(map(len, jpegs)),
            "side": SIDE, "batch": BATCH, "workers": WORKERS, "parquet row group": GROUP,
            "pictures per second": rates,
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def sides(sources: dict[str, Source], folder: Path) -> dict[str, Callable[[], Iterator[int]]]:
    """{name: images in each batch of two passes over the set}."""
    ours = {f"{kind}, threads": loading(source, 0) for kind, source in sources.items()}
    for kind in ("webdataset", "arrayrecord"):
        ours[f"{kind}, {WORKERS} processes"] = loading(sources[kind], WORKERS)
    theirs = f"PyTorch DataLoader + webdataset, {WORKERS} processes"
    return {**ours, theirs: lambda: with_torch(tars(folder))}


def second_pass(run: Callable[[], Iterator[int]], images: int) -> float:
    """Seconds from the end of the first pass, when processes are up and buffers full, to the last
    batch: ending the processes is no part of a pass."""
    came, began, ended = 0, 0.0, 0.0
    for count in run():
        came += count
        ended = time.perf_counter()
        began = began or (ended if came >= images else 0.0)
    assert came == 2 * images
    return ended - began


def loading(source: Source, workers: int) -> Callable[[], Iterator[int]]:
    """Our loader over a source."""
    folder = Path(str(files("edje_jax").joinpath("assets", "shapes_backbone")))
    recipe = RowRecipe(ImageRecipe(size=SIDE), BackboneTokenizer(folder, 32))
    steps = 2 * len(source) // BATCH
    reader = TrainingBatches(source, recipe, DataConfig(batch_size=BATCH), 0, steps)

    def run() -> Iterator[int]:
        for batch in iterate(reader, 0, BadRecords(len(source), 0.0), workers):
            yield int(batch.valid.sum())

    return run


def with_torch(paths: list[str]) -> Iterator[int]:
    """Read the same tars as a PyTorch user would."""
    dataset = (
        webdataset.WebDataset(paths, shardshuffle=100)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(to_pixels, str)
        .repeat(2)
    )
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=WORKERS)
    return (len(images) for images, _ in loader)


def to_pixels(image: Image.Image) -> np.ndarray:
    """As `resize` does it: warped, bilinear, uint8."""
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def reading(source: Source) -> Callable[[], Any]:
    """Every image's file in a shuffled order."""
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    return lambda: sum(len(file_bytes(source, index)) for index in order)


def rate(images: int, seconds: list[float]) -> dict[str, float]:
    """Images per second: median, least and most."""
    rates = sorted(images / one for one in seconds)
    return {"median": statistics.median(rates), "least": rates[0], "most": rates[-1]}


# --- the sets -------------------------------------------------------------------------------------


def jpeg(seed: int) -> bytes:
    """An image with structure at every scale, and of as many bytes, as photographs have."""
    random, pixels = np.random.default_rng(seed), np.full((480, 640, 3), 128, np.float32)
    for octave in range(8):
        shape = (3 << octave, 4 << octave, 3)
        noise = Image.fromarray(random.integers(0, 256, shape, np.uint8))
        detail = np.asarray(noise.resize((640, 480), Image.Resampling.BICUBIC), np.float32) - 128
        pixels += 0.6 * detail * 0.85**octave
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_sets(folder: Path, jpegs: list[bytes]) -> dict[str, str]:
    """{kind: SPEC} of the same images, one caption each. (`karpathy:` reads as `blip:` does.)"""
    captions = [f"an image of noise, number {i}" for i in range(len(jpegs))]
    images = folder / "blip"
    images.mkdir()
    for i, data in enumerate(jpegs):
        (images / f"{i}.jpg").write_bytes(data)
    entries = [{"image": f"{i}.jpg", "caption": text} for i, text in enumerate(captions)]
    (images / "all.json").write_text(json.dumps(entries))
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=len(jpegs) // 4, verbose=0) as tar:
        for i, data in enumerate(jpegs):
            tar.write({"__key__": f"{i:09d}", "jpg": data, "txt": captions[i]})
    table = pa.table({"image": [{"bytes": data} for data in jpegs], "caption": captions})
    pq.write_table(table, folder / "all.parquet", row_group_size=GROUP)
    specs = {
        "blip": f"blip:{images}/all.json",
        "tfds": write_tfds(folder, jpegs, captions),
        "webdataset": f"webdataset:{folder}/*.tar",
        "arrayrecord": f"arrayrecord:{folder}/packed/*.array_record",
        "parquet": f"parquet:{folder}/*.parquet",
    }
    pack(open_source(specs["blip"]), folder / "packed")
    return specs


def write_tfds(folder: Path, jpegs: list[bytes], captions: list[str]) -> str:
    """A prepared set of TensorFlow Datasets."""

    class Noise(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """The images."""

        __module__ = "noise"  # Of a package, TFDS looks for more files
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(encoding_format="jpeg")
            features = {"image": image, "caption": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, data in enumerate(jpegs):
                yield i, {"image": io.BytesIO(data), "caption": captions[i]}

    builder = Noise(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return f"tfds:{builder.data_dir}#train"


def tars(folder: Path) -> list[str]:
    """The tars in order."""
    return sorted(map(str, folder.glob("*.tar")))


if __name__ == "__main__":
    main()
