"""The files of a shard: written whole, and named by the shard's record in the manifest.

    {"number", "rows", "captions", "files": {name: {"bytes", "sha256"}}}

A file's name begins with what it holds: a column, such as `tokens-00000.npy`, or `rows`,
`thumbnails`, `strips`. `store` describes each.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edje_jax.system.files import atomic_path
from edje_jax.system.mapped_files import map_array, map_bytes
from edje_jax.types import Scalar


class BadStore(ValueError):
    """An index is unfinished, damaged, or of another model; the message names the remedy."""


class ImageRecord(NamedTuple):
    """Metadata of an image in an index."""

    id: str
    path: str
    """Path of the image's file when it was indexed; empty if it was no file."""
    captions: list[str]
    thumbnail: tuple[int, int]
    """(start, length) in the shard's thumbnails."""
    stamp: str = ""
    """Stamp of the image (`edje_jax.data.stamps`); "" if the source has none."""
    digest: str = ""
    """Digest of the image's file; "" where the stamp suffices, and in a row of format 1."""
    metadata: Mapping[str, Scalar] = {}
    """Values that filters can ask for."""
    strip: tuple[int, int] = (0, 0)
    """(start, length) in the shard's strips, of an index of videos."""
    unknown: Mapping[str, Any] = {}
    """Keys of the row that this version does not know, which are kept."""


_KEYS = frozenset(ImageRecord._fields) - {"unknown"}


def kind_of(name: str) -> str:
    """Content of a shard's file by its name: a column, "thumbnails", "strips" or "rows"."""
    return name.rpartition("-")[0]


def file_of(folder: Path, record: dict[str, Any], kind: str) -> Path:
    """A shard's file of a kind: a column, "thumbnails", "strips" or "rows".

    Raises:
        BadStore: the record names none.
    """
    return folder / name_of(record, kind, folder)


def name_of(record: dict[str, Any], kind: str, folder: object) -> str:
    """Name of a shard's file of a kind; `folder` is that of the error's message.

    Raises:
        BadStore: the record names none.
    """
    for name in record["files"]:
        if kind_of(name) == kind:
            return name
    raise BadStore(
        f"{folder}/manifest.json: names no {kind} of shard {record['number']}; build the index"
        " again"
    )


def map_file(path: Path) -> np.ndarray:
    """The array in one of a shard's .npy files, read-only and not read before it is used.

    Raises:
        BadStore: the file is damaged.
        OSError: the system cannot map it.
    """
    try:
        return map_array(path)
    except ValueError as error:
        raise BadStore(f"{path}: damaged ({error}); build the index again") from error


def map_whole(path: Path, dtype: np.dtype) -> np.ndarray:
    """The array in one of a shard's files: a column as that dtype, or a file's bytes (uint8).

    Raises:
        BadStore: the file is damaged.
        OSError: the system cannot map it.
    """
    return map_file(path).view(dtype) if path.suffix == ".npy" else map_bytes(path)


def has_file(record: dict[str, Any], kind: str) -> bool:
    """Whether a shard has a file of a kind."""
    return any(kind_of(name) == kind for name in record["files"])


def next_name(path: Path) -> Path:
    """rows-00000.jsonl -> rows-00000.1.jsonl -> rows-00000.2.jsonl"""
    stem, *version, ending = path.name.split(".")
    return path.with_name(f"{stem}.{int(version[0]) + 1 if version else 1}.{ending}")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a .npy file, whole or not at all."""
    if array.dtype.kind == "V":  # bfloat16 and the like, which files of NumPy know as bits alone
        array = array.view(f"u{array.dtype.itemsize}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def row_line(row: ImageRecord) -> bytes:
    """Line of a file of rows."""
    words = row._asdict()
    unknown = words.pop("unknown")
    for name in ("metadata", "strip"):
        if words[name] == ImageRecord._field_defaults[name]:
            del words[name]
    line = json.dumps({**words, **unknown}, ensure_ascii=False) + "\n"
    # A path may hold bytes that are not UTF-8: they are written as JSON escapes.
    return line.encode("utf-8", "backslashreplace")


def file_entry(path: Path) -> dict[str, Any]:
    """Size and checksum of a file, as a shard's record holds them."""
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def read_rows(path: Path) -> Iterator[ImageRecord]:
    """Read the lines of a rows file; a key that is missing takes its default, if it has one.

    Raises:
        BadStore: the file is damaged.
    """
    with path.open("rb") as file:
        for line in file:
            yield parse_row(line, path)


def parse_row(line: bytes, path: Path | str) -> ImageRecord:
    """Row of a line of a rows file.

    Raises:
        BadStore: the line is damaged.
    """
    try:
        words = json.loads(line)
        unknown = {name: words.pop(name) for name in sorted(words.keys() - _KEYS)}
        spans = ("thumbnail", "strip") if "strip" in words else ("thumbnail",)
        words |= {name: tuple(words[name]) for name in spans}
        return ImageRecord(**words, unknown=unknown)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadStore(f"{path}: damaged ({error}); build the index again") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
