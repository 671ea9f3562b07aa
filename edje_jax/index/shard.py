"""A shard of an index, opened: its columns mapped into memory, its rows read one by one."""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int, UInt32

from edje_jax.index.files import IndexFiles
from edje_jax.index.manifest import Manifest
from edje_jax.index.metadata import open_metadata
from edje_jax.index.places import Gone, merge_runs
from edje_jax.index.row_lookup import RowLookup, hash_ids, look_up
from edje_jax.index.shard_files import (
    BadStore,
    ImageRecord,
    has_file,
    kind_of,
    map_file,
    name_of,
    parse_row,
)

BYTES = np.dtype(np.uint8)


class Shard:
    """Files of a shard; opening it reads none of its rows, unless an older version wrote it."""

    def __init__(self, files: IndexFiles, record: dict[str, Any], manifest: Manifest):
        there = {kind_of(name) for name in record["files"]}
        self.number: int = record["number"]
        self.columns = {
            name: files.array(
                record,
                name,
                np.dtype(type.dtype),
                (record["rows" if type.per == "image" else "captions"], *type.shape),
            )
            for name, type in manifest.column_types.items()
            if name in there or name not in manifest.columns
        }
        self._path = f"{files}/{name_of(record, 'rows', files)}"
        # Mapped too: a file that is deleted meanwhile is here until this is closed.
        self._rows, self._thumbnails = (
            files.array(record, kind, BYTES, _size_of(record, kind, files))
            for kind in ("rows", "thumbnails")
        )
        self._strips = None
        if has_file(record, "strips"):
            self._strips = files.array(record, "strips", BYTES, _size_of(record, "strips", files))
        self.is_old = _is_old(record)
        """Whether an older version wrote it, without the files of `row_lookup`."""
        self.lookup = _lookup(files, record)
        self.gone: UInt32[np.ndarray, " g"] = (
            map_file(files.path(record, "gone"))
            if has_file(record, "gone")
            else np.empty(0, np.uint32)
        )
        """Rows that count no more, rising."""
        self._metadata = None
        if has_file(record, "metadata"):
            size = _size_of(record, "metadata", files)
            self._metadata = files.array(record, "metadata", BYTES, size)
            self._metadata_path = f"{files}/{name_of(record, 'metadata', files)}"

    @cached_property
    def metadata(self) -> Any:
        """Table of the values that filters can ask for (`pyarrow.Table`); None without any.

        Raises:
            BadStore: the file is damaged.
            ModuleNotFoundError: pyarrow is not installed; the message says how to get it.
        """
        if self._metadata is None:
            return None
        data = np.asarray(self._metadata)
        try:
            return open_metadata(data)
        except ValueError as error:
            raise BadStore(
                f"{self._metadata_path}: damaged ({error}); build the index again"
            ) from error

    def __len__(self) -> int:
        return len(self.lookup.id_rows)

    @property
    def num_captions(self) -> int:
        """Number of captions of all rows."""
        return int(self.lookup.caption_starts[-1])

    def row(self, row: int) -> ImageRecord:
        """Metadata of an image.

        Raises:
            BadStore: its line is damaged.
        """
        start, end = (int(self.lookup.row_starts[i]) for i in (row, row + 1))
        return parse_row(self._rows[start:end].tobytes(), self._path)

    def rows(self) -> Iterator[ImageRecord]:
        """Metadata of all images, in the order of the arrays."""
        return (self.row(row) for row in range(len(self)))

    def odd_rows(self) -> list[int]:
        """Rows whose ids have bytes that are no UTF-8, which JSON has as escapes."""
        places = [found.start() for found in re.finditer(rb"\\ud", np.asarray(self._rows))]  # type: ignore[arg-type]
        rows = np.unique(np.searchsorted(self.lookup.row_starts, places, side="right") - 1)
        return [row for row in rows.tolist() if not _is_whole(self.row(row).id)]

    def images_of(self, captions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Rows of the images that some captions of the shard belong to."""
        starts = self.lookup.caption_starts
        return np.searchsorted(starts, captions.astype(starts.dtype), side="right") - 1

    def caption(self, caption: int) -> tuple[int, str]:
        """(row of its image, text) of a caption of the shard."""
        (row,) = self.images_of(np.array([caption])).tolist()
        return row, self.row(row).captions[caption - int(self.lookup.caption_starts[row])]

    def thumbnail(self, row: int) -> bytes:
        """A JPEG file."""
        start, length = self.row(row).thumbnail
        return self._thumbnails[start : start + length].tobytes()

    @property
    def has_strips(self) -> bool:
        """Whether it keeps strips of frames, as shards of videos do."""
        return self._strips is not None

    def strip(self, row: int) -> bytes:
        """A JPEG file of a video's frames beside each other.

        Raises:
            BadStore: it is a shard of images.
        """
        if self._strips is None:
            raise BadStore(f"{self._path}: no strips of frames here; it is an index of images")
        start, length = self.row(row).strip
        return self._strips[start : start + length].tobytes()

    def gone_images(self) -> Gone:
        """Rows of images that count no more."""
        gone = self.gone.astype(np.int64)
        return merge_runs(gone, gone + 1)

    def gone_captions(self) -> Gone:
        """Rows of captions of images that count no more."""
        images = self.gone_images()
        starts, ends = images.starts, images.starts + images.lengths
        first = self.lookup.caption_starts
        return merge_runs(first[starts].astype(np.int64), first[ends].astype(np.int64))


def open_shards(
    files: IndexFiles, records: Sequence[dict[str, Any]], manifest: Manifest
) -> list[Shard]:
    """Shards of an index by their records; what opening them reads is fetched at once.

    Raises:
        BadStore: a file is missing or damaged.
    """
    files.prepare(records, ("gone", *RowLookup._fields))
    files.prepare([record for record in records if _is_old(record)], ("rows",))
    return [Shard(files, record, manifest) for record in records]


def _is_old(record: dict[str, Any]) -> bool:
    return not {kind_of(name) for name in record["files"]}.issuperset(RowLookup._fields)


def _lookup(files: IndexFiles, record: dict[str, Any]) -> RowLookup:
    if _is_old(record):
        return look_up(files.path(record, "rows"))
    return RowLookup(*(map_file(files.path(record, kind)) for kind in RowLookup._fields))


def _size_of(record: dict[str, Any], kind: str, files: IndexFiles) -> tuple[int]:
    """Shape of a file's bytes."""
    return (record["files"][name_of(record, kind, files)]["bytes"],)


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def find_rows(
    shards: list[Shard], ids: list[str]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(position of the shard, row in it) of the last row of each id; (-1, -1) where there is none.

    An index that was updated has several rows of an image that changed, of which the last counts.
    """
    hashes = hash_ids(ids)
    order = np.argsort(hashes)
    ordered = hashes[order]
    at = np.full(len(ids), -1, np.int64)
    rows = np.full(len(ids), -1, np.int64)
    for position, shard in enumerate(shards):
        known = shard.lookup.id_hashes
        low = np.searchsorted(known, ordered, side="left")
        high = np.searchsorted(known, ordered, side="right")
        for place in np.flatnonzero(high > low):
            asked = order[place]
            for row in sorted(shard.lookup.id_rows[low[place] : high[place]].tolist()):
                if shard.row(row).id == ids[asked]:  # Two ids may have the same hash
                    at[asked], rows[asked] = position, row
    return at, rows
