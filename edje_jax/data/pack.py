"""Any source -> ArrayRecord shards that the `arrayrecord:` source reads (it documents the format).

Images are kept as the files they were, after one decoding to see that they can be read. A shard
is written under a temporary name and renamed; those that are there already are not made again, so
that the same call goes on where a killed one stopped.
"""

import csv
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.feature_cache import dataset_stamp
from edje_jax.data.image_reader import in_order, or_bad
from edje_jax.data.images import BadImage, decode, file_bytes, is_video
from edje_jax.data.sources.array_record import FORMAT, VERSION, read_table
from edje_jax.data.sources.mixture import Mixture
from edje_jax.data.sources.subset import merge_by_id
from edje_jax.data.sources.texts import printable
from edje_jax.system.files import atomic_path, is_abandoned
from edje_jax.types import Source

OPTIONS = "group_size:1,uncompressed"
"""Options of ArrayRecord: records are read one by one; image files are compressed already."""
AHEAD = 64
"""Images whose files are read before they are written."""


def pack(
    source: Source,
    out: Path,
    shard_size: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, dict[str, str]]:
    """Write a set into `out` in shards of `shard_size` images.

    Args:
        progress: called with (images done, images to do).

    Returns:
        (images written, {id of one that could not be read, or lost captions: reason}), also of
        earlier calls; the latter are in `rejected.csv` too, and what the source left out.

    Raises:
        ImportError: array-record is not installed.
        ValueError: `out` holds another set, or `source` is a mixture with weights.
        OSError: the disk is full, or `out` cannot be written.
    """
    if isinstance(source, Mixture) and source.weights:
        raise ValueError("a mixture with weights repeats images; pack the parts, then mix these")
    source = merge_by_id(source)
    total = len(source)
    starts = range(0, total, shard_size)
    head = {"format": FORMAT, "version": VERSION, "set": dataset_stamp(source)[0]["digest"]}
    head["shards"] = len(starts)
    names = [f"pictures-{i:05d}-of-{len(starts):05d}.array_record" for i in range(len(starts))]
    _refuse_others(out, names, head)
    out.mkdir(parents=True, exist_ok=True)
    written, rejected = 0, dict(left_out(source))
    for shard, (start, name) in enumerate(zip(starts, names, strict=True)):
        records = range(start, min(start + shard_size, total))
        if not (out / name).exists():
            files = in_order(partial(or_bad, partial(_file, source)), records, AHEAD)
            _write(out / name, source, records, files, {**head, "shard": shard})
        table = read_table(str(out / name))
        written += len(table["pictures"])
        rejected |= {one["id"]: one["reason"] for one in table["rejected"]}
        if progress:
            progress(records.stop, total)
    _list_rejected(out / "rejected.csv", rejected)
    for temporary in out.glob("*.array_record.*.tmp"):
        if is_abandoned(temporary):
            temporary.unlink(missing_ok=True)
    return written, rejected


def _file(source: Source, index: int) -> bytes:
    """File of an image; `BadImage` if it cannot be decoded."""
    if is_video(source, index):
        raise BadImage("a video; packs hold images alone, so leave it where it is")
    data = file_bytes(source, index)
    decode(data, source.image_id(index))
    return data


def _write(
    path: Path,
    source: Source,
    records: range,
    files: Iterable[bytes | BadImage],
    head: dict[str, Any],
) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    images, rejected = [], []
    with atomic_path(path) as temporary:
        writer = ArrayRecordWriter(str(temporary), OPTIONS)
        for record, data in zip(records, files, strict=True):
            image_id = source.image_id(record)
            if isinstance(data, BadImage):
                rejected.append({"id": image_id, "reason": str(data)})
                continue
            writer.write(data)
            images.append({"id": image_id, "captions": list(source.captions(record))})
            if fault := caption_faults(source, record):
                rejected.append({"id": image_id, "reason": f"packed without a caption: {fault}"})
        table = {**head, "pictures": images, "rejected": rejected}
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
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        named = [(printable(name), printable(reason)) for name, reason in rejected.items()]
        csv.writer(file).writerows([("id", "reason"), *named])
