"""Removal of images from an index, and release of their disk space."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.shard_files import BadStore, Row, file_of, read_rows, write_shard
from edje_jax.index.store import Manifest, current_rows, next_number
from edje_jax.models.token_formats import PackedTokens

_KINDS = ("embeddings", "captions", "thumbnails", "rows")


def remove(out: Path, ids: list[str]) -> int:
    """Take images out of an index, for good; their shards keep them until `compact`.

    Returns:
        How many there were; an id that is given twice counts once.

    Raises:
        BadStore: an id is not in the index; nothing is removed then.
    """
    manifest = Manifest.read(out)
    known, hidden = current_rows(out, manifest), manifest.hidden
    if unknown := [name for name in ids if name not in known or name in hidden]:
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise BadStore(f"{out}: not in the index: {listed}; nothing was removed")
    removed = tuple(sorted({*manifest.removed, *ids}))
    dataclasses.replace(manifest, removed=removed).write(out)
    return len(set(ids))


def compact(out: Path) -> int:
    """Write shards anew that hold images which no longer count, without them; how many these were.

    Removed ids stay removed: a build leaves them out.

    Raises:
        BadStore: a build is under way.
    """
    manifest = Manifest.read(out)
    if (out / "build.json").exists():
        raise BadStore(f"{out}: a build is under way or unfinished; run it to its end first")
    hidden, following = manifest.hidden, next_number(manifest)
    rows_now = current_rows(out, manifest)
    counting = {place for name, (place, _) in rows_now.items() if name not in hidden}
    kept, gone = [], 0
    for shard, record in enumerate(manifest.shards):
        rows = list(read_rows(file_of(out, record, "rows")))
        stay = np.array([(shard, number) in counting for number in range(len(rows))], bool)
        gone += int((~stay).sum())
        if stay.all():
            kept.append(record)
        elif stay.any():
            kept.append(_without(out, manifest, record, following, rows, stay))
            following += 1
    dataclasses.replace(manifest, shards=tuple(kept), dropped=()).write(out)
    listed = {name for record in kept for name in record["files"]}
    kinds = tuple(f"{kind}-" for kind in (*manifest.token_rows, *_KINDS))
    for path in out.iterdir():
        if path.name.startswith(kinds) and path.name not in listed:
            path.unlink(missing_ok=True)
    return gone


def _without(
    out: Path,
    manifest: Manifest,
    record: dict[str, Any],
    following: int,
    rows: list[Row],
    stay: np.ndarray,
) -> dict[str, Any]:
    """A shard's rows that stay, as another shard."""

    def array(kind: str) -> np.ndarray:
        return np.load(file_of(out, record, kind), mmap_mode=None, allow_pickle=False)

    columns = {name: array(name).view(row.dtype) for name, row in manifest.token_rows.items()}
    packed = PackedTokens(manifest.token_dtype, columns)
    owner = np.repeat(np.arange(len(rows)), [len(row.captions) for row in rows])
    data = file_of(out, record, "thumbnails").read_bytes()
    left = [row for row, stays in zip(rows, stay, strict=True) if stays]
    thumbnails = [data[start : start + size] for start, size in (row.thumbnail for row in left)]
    return write_shard(
        out, following, packed[np.flatnonzero(stay)], array("embeddings")[stay],
        array("captions")[stay[owner]], left, thumbnails,
    )  # fmt: skip
