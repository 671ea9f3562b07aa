"""Removal of images from an index; release of their disk space, and merging of small shards."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from edje_jax.index import build
from edje_jax.index.changing import changing
from edje_jax.index.files import IndexFiles, files_of
from edje_jax.index.gone import with_gone
from edje_jax.index.manifest import FORMAT, Manifest
from edje_jax.index.row_lookup import RowLookup
from edje_jax.index.shard import Shard, find_rows, open_shards
from edje_jax.index.shard_files import BadStore, kind_of
from edje_jax.index.shard_writer import ShardWriter, clear_unfinished
from edje_jax.index.stage_upkeep import tidy_first_stages
from edje_jax.index.store import Store, next_number


def remove(index: str | os.PathLike[str] | IndexFiles, ids: list[str]) -> int:
    """Take images out of an index, for good; their shards keep them until `compact`.

    Returns:
        How many there were; an id that is given twice counts once.

    Raises:
        BadStore: an id is not in the index; nothing is removed then.
    """
    out = files_of(index)
    Manifest.read(out)
    with changing(out):
        manifest = Manifest.read(out)
        at, _ = find_rows(open_shards(out, manifest.shards, manifest), ids)
        hidden = manifest.hidden
        known = dict(zip(ids, (at >= 0).tolist(), strict=True))
        if unknown := [name for name in ids if not known[name] or name in hidden]:
            listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            raise BadStore(f"{out}: not in the index: {listed}; nothing was removed")
        removed = tuple(sorted({*manifest.removed, *ids}))
        with_gone(out, dataclasses.replace(manifest, removed=removed)).write(out)
    return len(set(ids))


def compact(index: str | os.PathLike[str] | IndexFiles) -> int:
    """Write shards anew that are small, of an older format, or hold images which count no more.

    Neighbouring ones become one shard, until it has `build.SHARD_ROWS` images; nothing is encoded.
    The index is a whole one after each of them, and a compaction that was killed goes on with the
    next.

    Returns:
        Number of rows that were left out.

    Removed ids stay removed: a build leaves them out.

    Raises:
        BadStore: a build is under way.
    """
    out = files_of(index)
    before, gone = {record["number"] for record in Manifest.read(out).shards}, 0
    while (lost := _compact_first(out)) is not None:
        gone += lost
    with changing(out):
        _check_no_build(out)
        manifest = dataclasses.replace(Manifest.read(out), dropped=())
        manifest.write(out)
        listed = {name for record in manifest.shards for name in record["files"]}
        kinds = {
            *manifest.column_types, *RowLookup._fields,
            "thumbnails", "strips", "rows", "gone", "metadata",
        }  # fmt: skip
        names = [name for name in out.names("*") if kind_of(name) in kinds and name not in listed]
        out.delete(names)
    if before != {record["number"] for record in manifest.shards}:
        tidy_first_stages(out)
    return gone


def _compact_first(out: IndexFiles) -> int | None:
    """Merge the first shards that can be, and return how many rows were left out; None if there
    are none. Other processes may change the index between two of these."""
    with changing(out):
        _check_no_build(out)
        clear_unfinished(out.folder)
        manifest = Manifest.read(out)
        if manifest.format < FORMAT:
            with_gone(out, manifest).write(out)
            manifest = Manifest.read(out)
        store = Store(out)
        if (group := next(_groups(store), None)) is None:
            return None
        numbers = [store.shards[position].number for position in group]
        shards: list[dict[str, Any]] = []
        for record in manifest.shards:
            if record["number"] == numbers[0]:
                shards += _merged(out, store, group, next_number(manifest))
            elif record["number"] not in numbers:
                shards.append(record)
        dataclasses.replace(manifest, shards=tuple(shards)).write(out)
    return sum(len(store.shards[position].gone) for position in group)


def _check_no_build(out: IndexFiles) -> None:
    if out.exists("build.json"):
        raise BadStore(f"{out}: a build is under way or unfinished; run it to its end first")


def _groups(store: Store) -> Iterator[list[int]]:
    """Positions of neighbouring shards that become one."""
    group: list[int] = []
    for position, shard in enumerate(store.shards):
        is_clean = not (len(shard.gone) or shard.is_old)
        if is_clean and len(shard) >= build.SHARD_ROWS:
            yield from _worth_while(store, group)
            group = []
            continue
        if group and (
            store.shards[group[0]].columns.keys() != shard.columns.keys()
            or store.places.counts(position) >= build.SHARD_ROWS
        ):
            yield from _worth_while(store, group)
            group = []
        group.append(position)
        if sum(store.places.counts(one) for one in group) >= build.SHARD_ROWS:
            yield group
            group = []
    yield from _worth_while(store, group)


def _worth_while(store: Store, group: list[int]) -> list[list[int]]:
    """A group, unless it is one shard that stays as it is."""
    if len(group) == 1:
        shard = store.shards[group[0]]
        return [group] if len(shard.gone) or shard.is_old else []
    return [group] if group else []


def _merged(out: IndexFiles, store: Store, group: list[int], number: int) -> list[dict[str, Any]]:
    """Record of a shard of the rows of some shards that count; none if there are no such rows."""
    if not any(store.places.counts(position) for position in group):
        return []
    with ShardWriter(out.folder, number) as writer:
        for position in group:
            shard = store.shards[position]
            stays = np.ones(len(shard), bool)
            stays[shard.gone] = False
            rows = np.flatnonzero(stays)
            for start in range(0, len(rows), build.PART_ROWS):
                _append(writer, store.manifest, shard, rows[start : start + build.PART_ROWS])
        record = writer.finish(store.manifest.metadata)
        out.publish(record["files"])
        writer.clear()
    out.release(record["files"])
    return [record]


def _append(writer: ShardWriter, manifest: Manifest, shard: Shard, rows: np.ndarray) -> None:
    """Append some rows of a shard, and their captions."""
    starts = shard.lookup.caption_starts.astype(np.int64)
    captions = np.concatenate([np.arange(*starts[row : row + 2].tolist()) for row in rows])
    chosen = {"image": rows, "caption": captions}
    columns = {
        name: np.asarray(shard.columns[name][chosen[type.per]])
        for name, type in manifest.column_types.items()
        if name in shard.columns
    }
    left = [shard.row(int(row)) for row in rows]
    numbers = rows.tolist()
    strips = [shard.strip(row) for row in numbers] if shard.has_strips else None
    writer.append(columns, left, [shard.thumbnail(row) for row in numbers], strips=strips)
