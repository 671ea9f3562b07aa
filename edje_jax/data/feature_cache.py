"""Backbone features of a data set, kept on disk and read row by row.

    manifest.json         what it was made from; written last, so that a folder with one is whole
    vision_tokens.npy     [images, n, w] in the run's compute dtype; [videos, f, n, w] of videos,
                          all zeros where a video has no more frames
    image_embeddings.npy  [images, e] float32
    text_embeddings.npy   [captions, e] float32, an image's captions after each other
    first_caption.npy     [images + 1] int64: where each image's captions begin
    making.json           progress of one that is being written

The embedding of an image that could not be read is NaN. Vision tokens are most of it: 1.2 MB
an image for SigLIP2-L/16-384 in bfloat16.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from edje_jax.system.files import errors_name, read_json, write_json
from edje_jax.types import Features, Source

FORMAT = 1
TABLES = ("vision_tokens", "image_embeddings", "text_embeddings")


class OtherFeatures(ValueError):
    """The folder keeps features of another backbone, preprocessing or set."""


class Caption(NamedTuple):
    """Caption of a record of a source."""

    record: int
    number: int
    """Which of the record's captions."""


@dataclass(frozen=True)
class FeatureCache:
    """Finished cache. Cheap to make and to send to another process: files open at first use."""

    folder: Path

    def rows(self, wanted: Sequence[Caption]) -> tuple[Features, Bool[np.ndarray, " b"]]:
        """(features, whether the image could be read) of some captions and their images.

        The arrays are copies, with zeros where there is no image.
        """
        (tokens, images, captions), first = _open(self.folder)
        records = [caption.record for caption in wanted]
        # Of the last image, if it has no caption, the first would lie past the end.
        last = len(captions) - 1
        texts = [min(int(first[caption.record]) + caption.number, last) for caption in wanted]
        features = Features(tokens[records], images[records], captions[texts])
        valid = ~np.isnan(features.image_embeddings[:, 0])
        features.vision_tokens[~valid] = 0
        features.image_embeddings[~valid] = 0
        return features, valid


@lru_cache(maxsize=4)
def _open(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    dtypes = read_json(folder / "manifest.json")["dtypes"]
    tables = [
        np.load(folder / f"{name}.npy", mmap_mode="r").view(jnp.dtype(dtypes[name]))
        for name in TABLES
    ]
    return tables, np.load(folder / "first_caption.npy")


def dataset_stamp(source: Source) -> tuple[dict[str, Any], np.ndarray]:
    """(facts that tell a set from others, int64 [images + 1]: first caption of each image).

    Images are told apart by their ids, not by their pixels.
    """
    digest, first = hashlib.sha256(), np.zeros(len(source) + 1, np.int64)
    for index in range(len(source)):
        captions = list(source.captions(index))
        first[index + 1] = first[index] + len(captions)
        digest.update(json.dumps([source.image_id(index), captions]).encode())
    stamp = {
        "pictures": len(source),
        "captions": int(first[-1]),
        "digest": digest.hexdigest()[:32],
    }
    return stamp, first


def check(folder: Path, stamp: dict[str, Any], found: dict[str, Any]) -> None:
    """Compare what a folder was made from with what is wanted.

    Raises:
        OtherFeatures: they differ; the message says in what.
    """
    found, stamp = (json.loads(json.dumps(x)) for x in (found, stamp))
    changed = [
        f"  {name}: {found.get(name)!r} there, {stamp[name]!r} now"
        for name in stamp
        if found.get(name) != stamp[name]
    ]
    if changed:
        raise OtherFeatures(
            f"{folder}: features of another backbone, preprocessing or set. Give"
            " --data.cache-features another folder, or delete this one:\n" + "\n".join(changed)
        )


@dataclass(frozen=True)
class FeatureCacheWriter:
    """Cache that is being written; several processes may write their rows into one."""

    folder: Path
    stamp: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of the finished cache."""
        return sum(self._row_bytes(name) * self.shapes[name][0] for name in TABLES)

    def total(self, kind: str) -> int:
        """Number of "pictures" or "captions"."""
        return self.stamp["set"][kind]

    def begin(self, first_caption: np.ndarray) -> None:
        """Make the files at their full size, empty, unless an earlier run has begun them.

        Raises:
            OtherFeatures: an unfinished cache of something else lies there.
            OSError: the disk cannot hold it.
        """
        making = self.folder / "making.json"
        if making.exists():
            check(self.folder, self.stamp, read_json(making)["stamp"])
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if self.size > free:
            raise OSError(
                f"{self.folder}: the features of this set take {self.size / 1e9:.1f} GB and"
                f" {free / 1e9:.1f} GB are free; choose another folder with --data.cache-features,"
                " or do without"
            )
        with errors_name(self.folder):
            for name in TABLES:
                dtype = np.dtype(f"V{jnp.dtype(self.dtypes[name]).itemsize}")
                # Sparse: the disk is taken as rows come.
                np.lib.format.open_memmap(
                    self.folder / f"{name}.npy", "w+", dtype, self.shapes[name]
                )
            np.save(self.folder / "first_caption.npy", first_caption)
        self.save_progress({"pictures": 0, "captions": 0})

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Write rows of a table from `start` on."""
        path = self.folder / f"{name}.npy"
        with errors_name(path), path.open("r+b", buffering=0) as file:
            whole = path.stat().st_size
            header = whole - self._row_bytes(name) * self.shapes[name][0]
            file.seek(header + start * self._row_bytes(name))
            view = memoryview(rows.tobytes())
            while view:  # A raw file may take less than it is given, when the disk is nearly full
                view = view[file.write(view) :]

    def save_progress(self, done: dict[str, int]) -> None:
        """Save how many "pictures" and "captions" are written, which are not made again."""
        write_json(self.folder / "making.json", {"stamp": self.stamp, "done": done})

    def progress(self) -> dict[str, int]:
        """Numbers of "pictures" and "captions" that are written."""
        return read_json(self.folder / "making.json")["done"]

    def finish(self) -> None:
        """Write the manifest, which makes it a finished cache."""
        write_json(self.folder / "manifest.json", {"stamp": self.stamp, "dtypes": self.dtypes})
        (self.folder / "making.json").unlink()

    def _row_bytes(self, name: str) -> int:
        itemsize = jnp.dtype(self.dtypes[name]).itemsize
        return int(np.prod(self.shapes[name][1:])) * itemsize
