"""The token store: compressed tokens, embeddings, ids and captions of many images on disk.

    manifest.json             the model, the formats, every file with its size and SHA-256; replaced
                              in one go, so that an index is always a whole one
    tokens-00000.npy          [rows, m, d] in the token dtype (bfloat16 as its bits, uint16);
                              after the deferred layers, where the model has any
    scales-00000.npy          [rows, m] float16, for int8 and int4; each column of a token format
                              (`models.token_formats`) has files of its name
    embeddings-00000.npy      [rows, e], unit length, in the embedding dtype (`embeddings`)
    captions-00000.npy        [captions, e]: embeddings of the captions, image by image
    rows-00000.jsonl          {"id", "path", "captions", "thumbnail": [start, bytes], "stamp",
                              "digest"} a line
    row_starts-00000.npy and  where lines, captions and ids are found in a shard (`row_lookup`)
      three more
    gone-00000.1.npy          uint32, rising: rows that count no more; none where all do
    thumbnails-00000.bin      JPEG files after each other; of a video, its middle frame
    strips-00000.bin          of an index of videos: JPEG files of the frames (`Store.strip`)
    frame_times-00000.npy and  of an index of videos: seconds of frames and of whole videos
      video_length-00000.npy
    rejected.csv              images that could not be read, records that the source left out,
                              images without some of their captions, and why
    first-stage/NAME/         first stages that were built from these files (`first_stages`)

The .npy files are columns. A shard may have more of them: `manifest.Manifest.columns` lists those.

A shard is written part by part (`shard_writer`) and counts once it is whole. An image that changed
has a row in a later shard, which counts. Where only words changed (captions, paths, stamps), the
shard's rows and captions are written anew as `rows-00000.1.jsonl` and `captions-00000.1.npy`, and
the manifest names these. What counts no more stays until the index is compacted, which also merges
small shards.

Opening an index maps its files into memory and reads none of its rows, so that its time and memory
grow with the number of shards alone. An index that an older version wrote is read whole, until
`edje index compact` has brought it up to date.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.index.column import Column
from edje_jax.index.embeddings import from_stored
from edje_jax.index.files import LARGE, STAGES, IndexFiles, files_of
from edje_jax.index.gone import gone_rows
from edje_jax.index.manifest import FRAME_TIMES, VIDEO_LENGTH, Manifest
from edje_jax.index.metadata import Kind, kinds_of
from edje_jax.index.places import Places
from edje_jax.index.shard import Shard, find_rows, open_shards
from edje_jax.index.shard_files import BadStore, ImageRecord, kind_of, name_of
from edje_jax.models.token_formats import PackedTokens

EMBEDDINGS = ("embeddings", "captions")
"""Columns of embeddings."""


class Store:
    """Arrays and metadata of a finished index; images count from 0, removed ones left out.

    Args:
        manifest: manifest of a part of the index (default: that of all of it).
        stages: folder of its first stages (default: `first-stage`).

    Raises:
        BadStore: no finished index, or a file is missing or of another size than it had.
        OSError: it is a remote one, and cannot be reached.
    """

    def __init__(
        self,
        index: str | os.PathLike[str] | IndexFiles,
        manifest: Manifest | None = None,
        stages: str = STAGES,
    ):
        self.files = files_of(index)
        self.folder = self.files.folder
        """Folder of the index, or of the copies of its files if it is a remote one."""
        self._opened = (self.files, manifest, stages)
        self.manifest = manifest or Manifest.read(self.files)
        self.stages = stages
        """Folder of the first stages in that folder."""
        self.files.check(self.manifest.shards)
        self.shards = counting_shards(self.files, self.manifest)
        self.places = Places(
            [len(shard) for shard in self.shards], [shard.gone_images() for shard in self.shards]
        )
        """Rows of shards that images lie in."""

    def __reduce__(self):
        # Opened again where it arrives: what is mapped here is not copied.
        return Store, self._opened

    def __len__(self) -> int:
        return len(self.places)

    def row(self, image: int) -> ImageRecord:
        """Id, path and captions of an image."""
        shard, row = self._locate(image)
        return self.shards[shard].row(row)

    @property
    def image_of_id(self) -> "ImageOfId":
        """Id -> image."""
        return ImageOfId(self)

    def thumbnail(self, image: int) -> bytes:
        """Thumbnail of an image, a JPEG file."""
        shard, row = self._locate(image)
        return self.shards[shard].thumbnail(row)

    @property
    def frames(self) -> int:
        """Most frames of a video; 0 of an index of images."""
        return self.manifest.frames

    def strip(self, image: int) -> bytes:
        """Frames of a video beside each other, left to right as they are shown, a JPEG file: each
        is `video_content.STRIP` pixels high, and all are equally wide.

        Raises:
            BadStore: it is an index of images.
        """
        shard, row = self._locate(image)
        return self.shards[shard].strip(row)

    def frame_times(self, image: int) -> Float32[np.ndarray, " f"]:
        """Seconds from the beginning of a video at which its frames are shown; NaN behind its last
        frame. An image is one frame at 0 seconds.

        Raises:
            BadStore: it is an index of images.
        """
        return self.column(FRAME_TIMES)[np.array([image])][0]

    def video_length(self, image: int) -> float:
        """Length of a video in seconds; 0 for an image.

        Raises:
            BadStore: it is an index of images.
        """
        return float(self.column(VIDEO_LENGTH)[np.array([image])][0])

    def column(self, name: str) -> Column:
        """A column, with a row for each image or, if it is one of captions, for each caption.

        Embeddings have unit length, whatever they are stored as.

        Raises:
            BadStore: the index has no such column, or a shard lacks it.
        """
        types = self.manifest.column_types
        if name not in types:
            raise BadStore(f"{self.files}: no column {name!r}; there are {', '.join(types)}")
        for shard, record in zip(self.shards, self.manifest.shards, strict=True):
            if name not in shard.columns:
                name_of(record, name, self.files)  # Says which it is
        places = self.places if types[name].per == "image" else self.caption_places
        parts = [shard.columns[name] for shard in self.shards]
        return Column(parts, places, types[name], from_stored if name in EMBEDDINGS else None)

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
    def captions(self) -> "Captions":
        """(image, caption) of every caption."""
        return Captions(self)

    @cached_property
    def caption_places(self) -> Places:
        """Rows of shards that captions lie in."""
        gone = [shard.gone_captions() for shard in self.shards]
        return Places([shard.num_captions for shard in self.shards], gone)

    def fetch(self) -> None:
        """Have all files of a remote index here but those of tokens and thumbnails, so that no
        search waits for them.

        Raises:
            BadStore, OSError: see `FileCache.path`.
        """
        shards = self.manifest.shards
        kinds = {kind_of(name) for record in shards for name in record["files"]}
        self.files.prepare(shards, sorted(kinds - LARGE))

    def captions_of(self, images: Int[np.ndarray, " n"]) -> Int[np.ndarray, " c"]:
        """Numbers of the captions of some images, image by image."""
        shards, rows = self.places.locate(images)
        first, count = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        for shard in np.unique(shards):
            here = shards == shard
            starts = self.shards[shard].lookup.caption_starts
            first[here] = starts[rows[here]]
            count[here] = starts[rows[here] + 1].astype(np.int64) - first[here]
        # Captions of an image lie one after the other.
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return self.caption_places.number(
            np.repeat(shards, count), np.repeat(first, count) + within
        )

    @cached_property
    def metadata_kinds(self) -> list[dict[str, Kind]]:
        """Kinds of the values that filters can ask for, by name, of each shard that has any.

        Raises:
            ModuleNotFoundError: there are some, and pyarrow is not installed.
        """
        self.files.prepare(self.manifest.shards, ("metadata",))
        return [kinds_of(shard.metadata) for shard in self.shards if shard.metadata is not None]

    def odd_images(self) -> list[int]:
        """Images whose ids have bytes that are no UTF-8; every row is looked at."""
        self.files.prepare(self.manifest.shards, ("rows",))
        rows = [(at, row) for at, shard in enumerate(self.shards) for row in shard.odd_rows()]
        at, own = np.array(rows, np.int64).reshape(-1, 2).T
        numbers = self.places.number(at, own)
        return numbers[numbers >= 0].tolist()

    def _locate(self, image: int) -> tuple[int, int]:
        shards, rows = self.places.locate(np.array([image]))
        return int(shards[0]), int(rows[0])


class ImageOfId(Mapping[str, int]):
    """Images by their ids, found by the shards' sorted hashes."""

    def __init__(self, store: Store):
        self._store = store

    def __getitem__(self, id: str) -> int:
        (image,) = self.find([id])
        if image < 0:
            raise KeyError(id)
        return int(image)

    def __iter__(self) -> Iterator[str]:
        return (self._store.row(image).id for image in range(len(self)))

    def __len__(self) -> int:
        return len(self._store)

    def find(self, ids: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Image of each id; -1 where there is none."""
        shards, rows = find_rows(self._store.shards, list(ids))
        found = np.full(len(shards), -1, np.int64)
        there = shards >= 0
        found[there] = self._store.places.number(shards[there], rows[there])
        return found


class Captions(Sequence[tuple[int, str]]):
    """(image, caption) of every caption of an index, image by image; read where they are taken."""

    def __init__(self, store: Store):
        self._store = store

    def __len__(self) -> int:
        return len(self._store.caption_places)

    @overload
    def __getitem__(self, caption: int, /) -> tuple[int, str]: ...

    @overload
    def __getitem__(self, caption: slice, /) -> list[tuple[int, str]]: ...

    def __getitem__(self, caption: int | slice, /) -> tuple[int, str] | list[tuple[int, str]]:
        if isinstance(caption, slice):
            return [self[i] for i in range(*caption.indices(len(self)))]
        shards, rows = self._store.caption_places.locate(np.array([caption]))
        row, text = self._store.shards[shards[0]].caption(int(rows[0]))
        return int(self._store.places.number(shards, np.array([row]))[0]), text

    def __iter__(self) -> Iterator[tuple[int, str]]:
        rows = (self._store.row(image).captions for image in range(len(self._store)))
        return ((image, text) for image, texts in enumerate(rows) for text in texts)


def counting_shards(files: IndexFiles, manifest: Manifest) -> list[Shard]:
    """Shards of an index, each with the rows of it that count no more.

    Raises:
        BadStore: a file is missing or damaged.
    """
    shards = open_shards(files, manifest.shards, manifest)
    if manifest.format < 3:
        for shard, rows in zip(shards, gone_rows(shards, manifest.hidden), strict=True):
            shard.gone = rows
    return shards


def check_model(store: Store, stamp: dict[str, Any]) -> None:
    """Compare the model that an index was built with and the one at hand, by its `stamp`.

    Raises:
        BadStore: they differ.
    """
    own = store.manifest.model
    if own["fingerprint"] != stamp["fingerprint"]:
        built, given = map(_describe, (own, stamp))
        raise BadStore(
            f"{store.files}: built with another model ({built}) than this one ({given}); open it"
            " with its own, or build another index"
        )


def _describe(stamp: dict[str, Any]) -> str:
    image = "".join(f", {name} {value}" for name, value in stamp.get("image", {}).items())
    return f"{stamp['source']}, {stamp.get('deferred_layers', 0)} deferred layers{image}"


def next_number(manifest: Manifest) -> int:
    """Number of the next shard of an index."""
    return max((record["number"] for record in manifest.shards), default=-1) + 1


def verify(index: str | os.PathLike[str] | IndexFiles) -> Iterator[tuple[str, str]]:
    """(file, its fault) for every file of a finished index that is not as it was written.

    Those of a remote index are read where they are, whether there are copies of them or not.

    Raises:
        BadStore: there is no finished index.
    """
    files = files_of(index)
    for record in Manifest.read(files).shards:
        for name, expected in record["files"].items():
            if (size := files.size(name)) is None:
                yield name, "missing"
            elif size != expected["bytes"]:
                yield name, f"{size} bytes, written with {expected['bytes']}"
            elif files.checksum(name) != expected["sha256"]:
                yield name, "not what was written: its checksum differs"
