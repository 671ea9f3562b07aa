"""The token store: compressed tokens, embeddings, ids and captions of many images on disk.

    manifest.json             the model, the formats, every file with its size and SHA-256; replaced
                              in one go, so that an index is always a whole one
    tokens-00000.npy          [rows, m, d] in the token dtype (bfloat16 as its bits, uint16);
                              after the deferred layers, where the model has any
    scales-00000.npy          [rows, m] float16, for int8 and int4; each column of a token format
                              (`models.token_formats`) has files of its name
    embeddings-00000.npy      [rows, e] float32, unit length: embeddings of the images
    captions-00000.npy        [captions, e] float32: embeddings of the captions, image by image
    rows-00000.jsonl          {"id", "path", "captions", "thumbnail": [start, bytes], "stamp",
                              "digest"} a line
    thumbnails-00000.bin      JPEG files after each other
    rejected.csv              images that could not be read, records that the source left out,
                              images without some of their captions, and why
    first-stage/NAME/         first stages that were built from these files (`first_stages`)

The .npy files are columns. A shard may have more of them: `manifest.Manifest.columns` lists those.

A shard is written whole or not at all. An image that changed has a row in a later shard, which
counts. Where only words changed (captions, paths, stamps), the shard's rows and captions are
written anew as `rows-00000.1.jsonl` and `captions-00000.1.npy`, and the manifest names these. What
counts no more stays until the index is compacted.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.index.column import Column
from edje_jax.index.manifest import Manifest
from edje_jax.index.mapped_files import map_bytes
from edje_jax.index.shard_files import (
    BadStore,
    ImageRecord,
    checksum,
    file_of,
    kind_of,
    map_file,
    read_rows,
)
from edje_jax.models.token_formats import PackedTokens


class Shard:
    """Files of a shard, memory-mapped."""

    def __init__(self, folder: Path, record: dict[str, Any], manifest: Manifest):
        there = {kind_of(name) for name in record["files"]}
        self.columns = {
            name: map_file(file_of(folder, record, name)).view(np.dtype(type.dtype))
            for name, type in manifest.column_types.items()
            if name in there or name not in manifest.columns
        }
        # Mapped too: a file that is deleted meanwhile is here until this is closed.
        self._thumbnails = map_bytes(file_of(folder, record, "thumbnails"))
        self.rows = list(read_rows(file_of(folder, record, "rows")))
        """Metadata of the images, in the order of the arrays."""

    def thumbnail(self, row: int) -> bytes:
        """A JPEG file."""
        start, length = self.rows[row].thumbnail
        return self._thumbnails[start : start + length].tobytes()


class Store:
    """Arrays and metadata of a finished index; images count from 0, removed ones left out.

    Raises:
        BadStore: no finished index, or a file is missing or of another size than it had.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = Manifest.read(folder)
        for record in self.manifest.shards:
            for name, expected in record["files"].items():
                _check_size(folder / name, expected["bytes"])
        self.shards = [Shard(folder, record, self.manifest) for record in self.manifest.shards]
        hidden = self.manifest.hidden
        rows = current(shard.rows for shard in self.shards)
        locations = sorted(location for name, (location, _) in rows.items() if name not in hidden)
        self.locations: Int[np.ndarray, "n 2"] = np.array(locations, np.int64).reshape(-1, 2)
        """(shard, row in it) of each image."""

    def __reduce__(self):
        # Opened again where it arrives: what is mapped here is not copied.
        return Store, (self.folder,)

    def __len__(self) -> int:
        return len(self.locations)

    def row(self, image: int) -> ImageRecord:
        """Id, path and captions of an image."""
        shard, row = self.locations[image]
        return self.shards[shard].rows[row]

    @cached_property
    def image_of_id(self) -> dict[str, int]:
        """Id -> image."""
        return {self.row(image).id: image for image in range(len(self))}

    def thumbnail(self, image: int) -> bytes:
        """Thumbnail of an image, a JPEG file."""
        shard, row = self.locations[image]
        return self.shards[shard].thumbnail(row)

    def column(self, name: str) -> Column:
        """A column, with a row for each image or, if it is one of captions, for each caption.

        Raises:
            BadStore: the index has no such column, or a shard lacks it.
        """
        types = self.manifest.column_types
        if name not in types:
            raise BadStore(f"{self.folder}: no column {name!r}; there are {', '.join(types)}")
        for shard, record in zip(self.shards, self.manifest.shards, strict=True):
            if name not in shard.columns:
                file_of(self.folder, record, name)  # Says which it is
        per_image = types[name].per == "image"
        locations = self.locations if per_image else self._caption_locations
        return Column([shard.columns[name] for shard in self.shards], locations, types[name])

    def tokens(self, images: Int[np.ndarray, " k"]) -> PackedTokens:
        """Tokens of some images, read from disk: the rows asked for and no others."""
        columns = {name: column[images] for name, column in self._token_columns.items()}
        return PackedTokens(self.manifest.token_dtype, columns)

    @cached_property
    def _token_columns(self) -> dict[str, Column]:
        return {name: self.column(name) for name in self.manifest.token_column_names}

    @cached_property
    def embeddings(self) -> Column:
        """Embeddings of all images, float32 [n, e]."""
        return self.column("embeddings")

    @cached_property
    def caption_embeddings(self) -> Column:
        """Embeddings of all captions, float32 [t, e], in the order of `captions`."""
        return self.column("captions")

    @cached_property
    def captions(self) -> list[tuple[int, str]]:
        """(image, caption) of every caption."""
        return [(image, text) for image in range(len(self)) for text in self.row(image).captions]

    @cached_property
    def _caption_locations(self) -> Int[np.ndarray, "t 2"]:
        """(shard, row among its captions) of each caption."""
        parts = []
        starts = [
            np.cumsum([0, *(len(row.captions) for row in shard.rows)]) for shard in self.shards
        ]
        for shard, row in self.locations:
            rows = np.arange(starts[shard][row], starts[shard][row + 1])
            parts.append(np.stack([np.full(len(rows), shard), rows], axis=1))
        return np.concatenate([np.empty((0, 2), np.int64), *parts])


def check_model(store: Store, stamp: dict[str, Any]) -> None:
    """Compare the model that an index was built with and the one at hand, by its `stamp`.

    Raises:
        BadStore: they differ.
    """
    own = store.manifest.model
    if own["fingerprint"] != stamp["fingerprint"]:
        built, given = map(_describe, (own, stamp))
        raise BadStore(
            f"{store.folder}: built with another model ({built}) than this one ({given}); open it"
            " with its own, or build another index"
        )


def _describe(stamp: dict[str, Any]) -> str:
    image = "".join(f", {name} {value}" for name, value in stamp.get("image", {}).items())
    return f"{stamp['source']}, {stamp.get('deferred_layers', 0)} deferred layers{image}"


Location = tuple[int, int]
"""(position of the shard in the manifest, row in it)"""


def current(parts: Iterable[Iterable[ImageRecord]]) -> dict[str, tuple[Location, ImageRecord]]:
    """Row that counts of each id, which is its last one, from the rows of all shards."""
    return {
        row.id: ((shard, number), row)
        for shard, rows in enumerate(parts)
        for number, row in enumerate(rows)
    }


def current_rows(folder: Path, manifest: Manifest) -> dict[str, tuple[Location, ImageRecord]]:
    """Row that counts of each id, hidden ids included."""
    return current(read_rows(file_of(folder, record, "rows")) for record in manifest.shards)


def next_number(manifest: Manifest) -> int:
    """Number of the next shard of an index."""
    return max((record["number"] for record in manifest.shards), default=-1) + 1


def verify(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, its fault) for every file of a finished index that is not as it was written.

    Raises:
        BadStore: there is no finished index.
    """
    for record in Manifest.read(folder).shards:
        for name, expected in record["files"].items():
            path = folder / name
            if not path.exists():
                yield name, "missing"
            elif path.stat().st_size != expected["bytes"]:
                yield name, f"{path.stat().st_size} bytes, written with {expected['bytes']}"
            elif checksum(path) != expected["sha256"]:
                yield name, "not what was written: its checksum differs"


def _check_size(path: Path, size: int) -> None:
    if not path.exists():
        raise BadStore(f"{path}: missing; build the index again")
    if path.stat().st_size != size:
        raise BadStore(
            f"{path}: {path.stat().st_size} bytes, written with {size}: truncated or overwritten;"
            " build the index again"
        )
