"""Rows of shards that count no more: those of images that changed later, or that are hidden."""

import dataclasses
from collections.abc import Collection

import numpy as np
from jaxtyping import UInt32

from edje_jax.index.files import IndexFiles
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard import Shard, find_rows, open_shards
from edje_jax.index.shard_files import (
    file_entry,
    has_file,
    kind_of,
    name_of,
    next_name,
    write_array,
)


def gone_rows(shards: list[Shard], hidden: Collection[str]) -> list[UInt32[np.ndarray, " g"]]:
    """Rows of each shard that count no more, rising: all rows of an id but the last one, and all
    of the hidden ids."""
    sizes = [len(shard) for shard in shards]
    gone = [np.zeros(size, bool) for size in sizes]
    for position, row in _superseded(shards):
        gone[position][row] = True
    at, rows = find_rows(shards, sorted(hidden))
    for position, row in zip(at, rows, strict=True):
        if position >= 0:
            gone[position][row] = True
    return [np.flatnonzero(one).astype(np.uint32) for one in gone]


def _superseded(shards: list[Shard]) -> list[tuple[int, int]]:
    """(position of the shard, row) of the rows whose id has a later one."""
    if not shards:
        return []
    hashes = np.concatenate([shard.lookup.id_hashes for shard in shards])
    rows = np.concatenate([shard.lookup.id_rows for shard in shards])
    positions = np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    groups: dict[int, list[tuple[int, int]]] = {}
    for place in sorted({*same.tolist(), *(same + 1).tolist()}):
        i = order[place]
        groups.setdefault(int(ordered[place]), []).append((int(positions[i]), int(rows[i])))
    out = []
    for members in groups.values():
        last: dict[str, tuple[int, int]] = {}  # Two ids may have the same hash
        for position, row in sorted(members):
            name = shards[position].row(row).id
            if name in last:
                out.append(last[name])
            last[name] = (position, row)
    return out


def with_gone(files: IndexFiles, manifest: Manifest) -> Manifest:
    """Manifest whose shards say which of their rows count no more, for its hidden ids.

    Lists that differ from those of before are written under new names.

    Raises:
        BadStore: a file is missing or damaged.
    """
    shards = open_shards(files, manifest.shards, manifest)
    records, written = [], {}
    for shard, rows, record in zip(
        shards, gone_rows(shards, manifest.hidden), manifest.shards, strict=True
    ):
        if np.array_equal(rows, shard.gone):
            records.append(record)
            continue
        path = files.folder / f"gone-{shard.number:05d}.npy"
        if has_file(record, "gone"):
            path = next_name(files.folder / name_of(record, "gone", files))
        write_array(path, rows)
        kept = {name: file for name, file in record["files"].items() if kind_of(name) != "gone"}
        kept[path.name] = written[path.name] = file_entry(path)
        records.append(record | {"files": kept})
    files.publish(written)
    files.release(written)
    return dataclasses.replace(manifest, shards=tuple(records))
