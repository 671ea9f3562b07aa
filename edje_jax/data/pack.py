"""Any source -> ArrayRecord shards that the `arrayrecord:` source reads (it documents the format).

Pictures are kept as the files they were, after one decoding to see that they can be read. A shard
is written under a temporary name and renamed; those that are there already are not made again, so
that the same call goes on where a killed one stopped.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edje_jax.data.bad_pictures import caption_faults, left_out
from edje_jax.data.feature_cache import stamp_of_set
from edje_jax.data.images import BadImage, decode, file_bytes
from edje_jax.data.sources.array_record import FORMAT, VERSION, read_table
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.subset import joined
from edje_jax.data.sources.texts import printable
from edje_jax.system.files import is_abandoned, replacing
from edje_jax.types import Source

OPTIONS = "group_size:1,uncompressed"
"""Options of ArrayRecord: records are read one by one; image files are compressed already."""
AHEAD = 64
"""Pictures that are read before they are written."""


def pack(
    source: Source,
    out: Path,
    shard_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, dict[str, str]]:
    """Write a set into `out` in shards of `shard_size` pictures.

    Args:
        progress: called with (pictures done, pictures to do).

    Returns:
        (pictures written, {id of one that could not be read, or lost captions: reason}), also of
        earlier calls; the latter are in `rejected.csv` too, and what the source left out.

    Raises:
        ImportError: array-record is not installed.
        ValueError: `out` holds another set, or `source` is a mixture with weights.
        OSError: the disk is full, or `out` cannot be written.
    """
    if isinstance(source, Mixture) and source.weights:
        raise ValueError("a mixture with weights repeats pictures; pack the parts, then mix these")
    source = joined(source)
    total = len(source)
    starts = range(0, total, shard_size)
    head = {"format": FORMAT, "version": VERSION, "set": stamp_of_set(source)[0]["digest"]}
    head["shards"] = len(starts)
    names = [f"pictures-{i:05d}-of-{len(starts):05d}.array_record" for i in range(len(starts))]
    _refuse_others(out, names, head)
    out.mkdir(parents=True, exist_ok=True)
    written, rejected = 0, dict(left_out(source))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, (start, name) in enumerate(zip(starts, names, strict=True)):
            rows = range(start, min(start + shard_size, total))
            if not (out / name).exists():
                files = _files(source, rows, pool)
                _write(out / name, source, rows, files, {**head, "shard": shard})
            table = read_table(str(out / name))
            written += len(table["pictures"])
            rejected |= {one["id"]: one["reason"] for one in table["rejected"]}
            if progress:
                progress(rows.stop, total)
    _list_rejected(out / "rejected.csv", rejected)
    for temporary in out.glob("*.array_record.*.tmp"):
        if is_abandoned(temporary):
            temporary.unlink(missing_ok=True)
    return written, rejected


def _files(source: Source, rows: range, pool: ThreadPoolExecutor) -> Iterator[bytes | BadImage]:
    """Pictures' files in order, few of them in memory at a time."""
    for start in range(rows.start, rows.stop, AHEAD):
        part = range(start, min(start + AHEAD, rows.stop))
        yield from pool.map(lambda row: _file(source, row), part)


def _file(source: Source, index: int) -> bytes | BadImage:
    """A picture's file, if it can be decoded."""
    try:
        data = file_bytes(source, index)
        decode(data, source.image_id(index))
    except BadImage as error:
        return error
    return data


def _write(
    path: Path, source: Source, rows: range, files: Iterable[bytes | BadImage], head: dict[str, Any]
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    pictures, rejected = [], []
    with replacing(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), OPTIONS)
        for row, data in zip(rows, files, strict=True):
            image_id = source.image_id(row)
            if isinstance(data, BadImage):
                rejected.append({"id": image_id, "reason": str(data)})
                continue
            writer.write(data)
            pictures.append({"id": image_id, "captions": list(source.captions(row))})
            if fault := caption_faults(source, row):
                rejected.append({"id": image_id, "reason": f"packed without a caption: {fault}"})
        table = {**head, "pictures": pictures, "rejected": rejected}
        writer.write(json.dumps(table).encode())
        writer.close()


def _refuse_others(out: Path, names: list[str], head: dict[str, Any]) -> None:
    for path in sorted(out.glob("*.array_record")):
        table = read_table(str(path))
        if path.name not in names or any(table[key] != value for key, value in head.items()):
            raise ValueError(
                f"{path}: packed from another set, or with another --shard-size; choose another"
                " --out, or delete this folder"
            )


def _list_rejected(path: Path, rejected: dict[str, str]) -> None:
    path.unlink(missing_ok=True)
    if not rejected:
        return
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        named = [(printable(name), printable(reason)) for name, reason in rejected.items()]
        csv.writer(file).writerows([("id", "reason"), *named])
