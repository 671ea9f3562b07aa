"""The files of a shard: written whole, and named by the shard's record in the manifest.

    {"number", "rows", "captions", "files": {name: {"bytes", "sha256"}}}

A file's name begins with what it holds: a column, such as `tokens-00000.npy`, or `rows`,
`thumbnails`. `store` describes each.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edje_jax.index.mapped_files import map_array
from edje_jax.system.files import atomic_path

Embed = Callable[[list[str]], Mapping[str, np.ndarray]]
"""Function from captions to the columns that have a row for each of them."""


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
    unknown: Mapping[str, Any] = {}
    """Keys of the row that this version does not know, which are kept."""


_KEYS = frozenset(ImageRecord._fields) - {"unknown"}


def kind_of(name: str) -> str:
    """Content of a shard's file by its name: a column, "thumbnails" or "rows"."""
    return name.rpartition("-")[0]


def file_of(folder: Path, record: dict[str, Any], kind: str) -> Path:
    """A shard's file of a kind: a column, "thumbnails" or "rows".

    Raises:
        BadStore: the record names none.
    """
    for name in record["files"]:
        if kind_of(name) == kind:
            return folder / name
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


def write_shard(
    folder: Path,
    number: int,
    columns: Mapping[str, np.ndarray],
    rows: Sequence[ImageRecord],
    thumbnails: Sequence[bytes],
) -> dict[str, Any]:
    """Write a shard's files and return its record; the shard counts once a manifest holds it.

    Args:
        columns: {name: array with a row for each image or for each caption}.
    """
    written = []
    for name, array in columns.items():
        written.append(folder / f"{name}-{number:05d}.npy")
        _write_array(written[-1], array)
    written.append(folder / f"thumbnails-{number:05d}.bin")
    with atomic_path(written[-1]) as temporary:
        temporary.write_bytes(b"".join(thumbnails))
    written.append(folder / f"rows-{number:05d}.jsonl")
    starts = np.cumsum([0, *map(len, thumbnails)]).tolist()
    spans = [(start, len(thumbnail)) for start, thumbnail in zip(starts, thumbnails, strict=False)]
    pairs = zip(rows, spans, strict=True)
    _write_rows(written[-1], [row._replace(thumbnail=span) for row, span in pairs])
    return {
        "number": number,
        "rows": len(rows),
        "captions": sum(len(row.captions) for row in rows),
        "files": {path.name: _file_entry(path) for path in written},
    }


def rewrite_words(
    folder: Path,
    record: dict[str, Any],
    rows: Sequence[ImageRecord],
    embed: Embed,
    per_caption: Collection[str] = ("captions",),
) -> dict[str, Any]:
    """Write a shard's rows, and its captions where these differ, under new names.

    Args:
        rows: as many as the shard has; what differs is captions, paths, stamps and digests.
        embed: computes the columns of captions that the shard does not have.
        per_caption: columns with a row for each caption.

    Returns:
        The shard's new record; the files count once a manifest holds it.

    Raises:
        BadStore: captions differ, and the shard has a column of them that `embed` does not compute.
    """
    before, files = file_of(folder, record, "rows"), dict(record["files"])
    previous = [text for row in read_rows(before) for text in row.captions]
    texts = [text for row in rows for text in row.captions]
    written = [_next_name(before)]
    _write_rows(written[0], rows)
    del files[before.name]
    if texts != previous:
        known = set(previous)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        made = embed(unknown)
        kept = {name: file_of(folder, record, name) for name in per_caption if _has(record, name)}
        if more := kept.keys() - made.keys():
            raise BadStore(
                f"{folder}: captions have changed, and this version of edje_jax cannot compute"
                f" their {', '.join(sorted(more))}; update it, or build another index"
            )
        for name, path in kept.items():
            rows_before = np.load(path, allow_pickle=False)
            of_text = dict(zip(previous, rows_before, strict=True))
            of_text |= dict(zip(unknown, made[name], strict=True))
            array = np.array([of_text[text] for text in texts], rows_before.dtype)
            written.append(_next_name(path))
            _write_array(written[-1], array.reshape(-1, *rows_before.shape[1:]))
            del files[path.name]
    files |= {path.name: _file_entry(path) for path in written}
    return record | {"captions": len(texts), "files": files}


def _has(record: dict[str, Any], kind: str) -> bool:
    return any(kind_of(name) == kind for name in record["files"])


def _next_name(path: Path) -> Path:
    """rows-00000.jsonl -> rows-00000.1.jsonl -> rows-00000.2.jsonl"""
    stem, *version, ending = path.name.split(".")
    return path.with_name(f"{stem}.{int(version[0]) + 1 if version else 1}.{ending}")


def _write_array(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind == "V":  # bfloat16 and the like, which files of NumPy know as bits alone
        array = array.view(f"u{array.dtype.itemsize}")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_rows(path: Path, rows: Sequence[ImageRecord]) -> None:
    # A path may hold bytes that are not UTF-8: they are written as JSON escapes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.writelines(json.dumps(_words(row), ensure_ascii=False) + "\n" for row in rows)


def _words(row: ImageRecord) -> dict[str, Any]:
    words = row._asdict()
    unknown = words.pop("unknown")
    return {**words, **unknown}


def _file_entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def read_rows(path: Path) -> Iterator[ImageRecord]:
    """Read the lines of a rows file; a key that is missing takes its default, if it has one.

    Raises:
        BadStore: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = json.loads(line)
                unknown = {name: words.pop(name) for name in sorted(words.keys() - _KEYS)}
                words |= {"thumbnail": tuple(words["thumbnail"])}
                yield ImageRecord(**words, unknown=unknown)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadStore(f"{path}: damaged ({error}); build the index again") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
