"""Looking after an index: taking pictures out of it, and giving their room back."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.models.token_formats import PackedTokens
from edje_jax.retrieval.store import (
    BadStore,
    Manifest,
    Row,
    known_ids,
    next_number,
    read_rows,
    write_shard,
)


def remove(out: Path, ids: list[str]) -> int:
    """Take pictures out of an index; their shards keep them until `compact`.

    Raises:
        BadStore: an id is not in the index; nothing is removed then.
    """
    manifest = Manifest.read(out)
    known = known_ids(out, manifest)
    if unknown := [name for name in ids if name not in known or name in manifest.removed]:
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise BadStore(f"{out}: not in the index: {listed}; nothing was removed")
    removed = tuple(sorted({*manifest.removed, *ids}))
    dataclasses.replace(manifest, removed=removed).write(out)
    return len(ids)


def compact(out: Path) -> int:
    """Write shards that hold removed pictures anew, without them; how many pictures went.

    Raises:
        BadStore: a build is under way.
    """
    manifest = Manifest.read(out)
    if (out / "build.json").exists():
        raise BadStore(f"{out}: a build is under way or unfinished; run it to its end first")
    removed, following = set(manifest.removed), next_number(manifest)
    kept, gone, outdated = [], 0, []
    for record in manifest.shards:
        number = record["number"]
        rows = list(read_rows(out / f"rows-{number:05d}.jsonl"))
        stay = np.array([row.id not in removed for row in rows], bool)
        if stay.all():
            kept.append(record)
            continue
        gone += int((~stay).sum())
        outdated += list(record["files"])
        if stay.any():
            kept.append(_without(out, number, following, rows, stay))
            following += 1
    dataclasses.replace(manifest, shards=tuple(kept), removed=()).write(out)
    for name in outdated:
        (out / name).unlink(missing_ok=True)
    return gone


def _without(
    out: Path, number: int, following: int, rows: list[Row], stay: np.ndarray
) -> dict[str, Any]:
    """A shard's rows that stay, as another shard."""

    def array(name: str) -> np.ndarray:
        return np.load(out / f"{name}-{number:05d}.npy", mmap_mode=None, allow_pickle=False)

    scales = out / f"scales-{number:05d}.npy"
    packed = PackedTokens(array("tokens"), array("scales") if scales.exists() else None)
    owner = np.repeat(np.arange(len(rows)), [len(row.captions) for row in rows])
    data = (out / f"thumbnails-{number:05d}.bin").read_bytes()
    left = [row for row, stays in zip(rows, stay, strict=True) if stays]
    thumbnails = [data[start : start + size] for start, size in (row.thumbnail for row in left)]
    return write_shard(
        out, following, packed[np.flatnonzero(stay)], array("embeddings")[stay],
        array("captions")[stay[owner]], left, thumbnails,
    )  # fmt: skip
