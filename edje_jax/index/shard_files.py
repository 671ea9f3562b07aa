"""The files of a shard: written whole, and named by the shard's record in the manifest.

    {"number", "rows", "captions", "files": {name: {"bytes", "sha256"}}}

`store` says what each file holds.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from edje_jax.index.mapped_files import map_array
from edje_jax.models.token_formats import PackedTokens
from edje_jax.system.files import replacing


class BadStore(ValueError):
    """An index is unfinished, damaged, or of another model; the message names the remedy."""


class Row(NamedTuple):
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


def file_of(folder: Path, record: dict[str, Any], kind: str) -> Path:
    """A shard's file of a kind: "tokens", "scales", "embeddings", "captions", "thumbnails", "rows".

    Raises:
        BadStore: the record names none.
    """
    for name in record["files"]:
        if name.startswith(f"{kind}-"):
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
    tokens: PackedTokens,
    embeddings: Float32[np.ndarray, "n e"],
    caption_embeddings: Float32[np.ndarray, "t e"],
    rows: Sequence[Row],
    thumbnails: Sequence[bytes],
) -> dict[str, Any]:
    """Write a shard's files and return its record; the shard counts once a manifest holds it."""
    arrays = {
        **{name: np.asarray(column) for name, column in tokens.columns.items()},
        "embeddings": embeddings,
        "captions": caption_embeddings,
    }
    written = []
    for name, array in arrays.items():
        written.append(folder / f"{name}-{number:05d}.npy")
        _write_array(written[-1], array)
    written.append(folder / f"thumbnails-{number:05d}.bin")
    with replacing(written[-1]) as temporary:
        temporary.write_bytes(b"".join(thumbnails))
    written.append(folder / f"rows-{number:05d}.jsonl")
    starts = np.cumsum([0, *map(len, thumbnails)]).tolist()
    places = [(start, len(thumbnail)) for start, thumbnail in zip(starts, thumbnails, strict=False)]
    placed = [row._replace(thumbnail=place) for row, place in zip(rows, places, strict=True)]
    _write_rows(written[-1], placed)
    return {
        "number": number,
        "rows": len(rows),
        "captions": len(caption_embeddings),
        "files": {path.name: _told(path) for path in written},
    }


def rewrite_words(
    folder: Path,
    record: dict[str, Any],
    rows: Sequence[Row],
    embed: Callable[[list[str]], Float32[np.ndarray, "t e"]],
) -> dict[str, Any]:
    """Write a shard's rows, and its captions where these differ, under new names.

    Args:
        rows: as many as the shard has; what differs is captions, paths, stamps and digests.
        embed: computes first-stage embeddings of captions that the shard does not have.

    Returns:
        The shard's new record; the files count once a manifest holds it.
    """
    before, files = file_of(folder, record, "rows"), dict(record["files"])
    told = [text for row in read_rows(before) for text in row.captions]
    texts = [text for row in rows for text in row.captions]
    written = [_next_name(before)]
    _write_rows(written[0], rows)
    del files[before.name]
    if texts != told:
        kept = file_of(folder, record, "captions")
        vectors = np.load(kept, allow_pickle=False)
        known = dict(zip(told, vectors, strict=True))
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        known |= dict(zip(unknown, embed(unknown), strict=True))
        written.append(_next_name(kept))
        array = np.array([known[text] for text in texts], np.float32)
        _write_array(written[1], array.reshape(-1, vectors.shape[1]))
        del files[kept.name]
    files |= {path.name: _told(path) for path in written}
    return record | {"captions": len(texts), "files": files}


def _next_name(path: Path) -> Path:
    """rows-00000.jsonl -> rows-00000.1.jsonl -> rows-00000.2.jsonl"""
    stem, *version, ending = path.name.split(".")
    return path.with_name(f"{stem}.{int(version[0]) + 1 if version else 1}.{ending}")


def _write_array(path: Path, array: np.ndarray) -> None:
    if array.dtype.kind == "V":  # bfloat16 and the like, which NumPy's files know as bits alone
        array = array.view(f"u{array.dtype.itemsize}")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    # A path may hold bytes that are not UTF-8: they are written as JSON escapes.
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.writelines(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def _told(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": checksum(path)}


def read_rows(path: Path) -> Iterator[Row]:
    """The lines of a rows file.

    Raises:
        BadStore: the file is damaged.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                words = json.loads(line)
                yield Row(**words | {"thumbnail": tuple(words["thumbnail"])})
    except (ValueError, TypeError, KeyError) as error:
        raise BadStore(f"{path}: damaged ({error}); build the index again") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
