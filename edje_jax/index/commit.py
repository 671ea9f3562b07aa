"""The end of a build: finished shards become part of the index, all at once."""

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edje_jax.data.bad_records import TooManyBadRecords, are_too_many
from edje_jax.index.changes import Changes
from edje_jax.index.gone import with_gone
from edje_jax.index.manifest import Manifest
from edje_jax.index.rewrite import Embed, rewrite_words
from edje_jax.index.shard import Shard, find_rows
from edje_jax.index.shard_files import file_of, read_rows
from edje_jax.index.shard_writer import ShardWriter, clear_unfinished
from edje_jax.system.files import atomic_path, read_json, write_json

LISTED = 20
"""Largest number of bad images that an error lists."""


@dataclass(frozen=True)
class Report:
    """Result of a build: the ids of the images by what was done with them."""

    new: list[str]
    changed: list[str]
    """Ids that were encoded again."""
    recaptioned: list[str]
    moved: list[str]
    """Ids whose file has another path."""
    gone: list[str]
    """Ids that are no longer in the source."""
    removed: list[str]
    """Ids that stay out of the index, as they were removed from it."""
    rejected: dict[str, str]
    """{id: why it is not in the index}"""
    faults: dict[str, str]
    """{record that the source left out, or id without some of its captions: why}"""
    unstamped: int
    """Number of images of which an older version recorded nothing to compare."""

    @classmethod
    def of(cls, changes: Changes, rejected: dict[str, str]) -> "Report":
        """Report of the changes after encoding; no rejected image is new or changed."""
        new, changed = (
            [name for name in names if name not in rejected]
            for names in (changes.new, changes.changed)
        )
        told = (changes.recaptioned, changes.moved, changes.gone, changes.removed)
        return cls(new, changed, *told, rejected, changes.faults, changes.unstamped)


def record_of(out: Path, number: int) -> Path:
    """Path of a finished shard's record until the build is complete."""
    return out / f"shard-{number:05d}.json"


def finish(
    out: Path,
    before: Manifest,
    changes: Changes,
    numbers: list[int],
    *,
    spec: str,
    max_bad: float,
    prune: bool,
    embed: Embed,
) -> Report | None:
    """Complete an index, if every shard of the build is there; None if other processes' are not.

    Raises:
        TooManyBadRecords: see `build`.
    """
    try:
        parts = [read_json(record_of(out, number)) for number in numbers]
    except FileNotFoundError:
        # Another process's shards are missing, or it was the last one and has completed the index.
        if (out / "build.json").exists():
            return None
        return Report.of(changes, Manifest.read(out).rejected)
    rejected = changes.bad | _rejected_in(parts)
    try:
        refuse_many(out, rejected, changes, max_bad)
        _refuse_none_left(out, rejected, changes, prune)
    except TooManyBadRecords:
        _forget_rejected(out, parts)
        raise
    now = with_shards(out, before, parts)
    now = dataclasses.replace(
        now,
        spec=spec,
        shards=_with_words(out, now, changes, embed),
        removed=tuple(name for name in now.removed if name not in changes.restored),
        rejected=rejected,
        faults=changes.faults,
        dropped=tuple(sorted([*changes.lost, *(changes.gone if prune else ())])),
    )
    commit(out, before, now, parts)
    return Report.of(changes, rejected)


def keep_shard(out: Path, writer: ShardWriter, metadata: Sequence[str]) -> None:
    """Finish a shard and keep its record until the build is complete."""
    record = {"shard": writer.finish(metadata), "rejected": writer.rejected}
    write_json(record_of(out, writer.number), record)
    writer.clear()


def finished_parts(out: Path) -> list[dict[str, Any]]:
    """Records of the finished shards of a build, and {id: reason} of what they reject."""
    paths = [path for path in out.glob("shard-*.json") if path.name.count(".") == 1]
    return [read_json(path) for path in sorted(paths)]


def refuse_many(out: Path, rejected: dict[str, str], changes: Changes, max_bad: float) -> None:
    """Raise `TooManyBadRecords` for more than may be bad."""
    bad, total = rejected | changes.faults, changes.records_in_all
    if are_too_many(len(bad), total, max_bad):
        reason = f"more than --max-bad {max_bad:g} allows. Raise the limit, or mend them"
        raise TooManyBadRecords(_listed(out, bad, total, reason))


def _refuse_none_left(out: Path, rejected: dict[str, str], changes: Changes, prune: bool) -> None:
    """Raise `TooManyBadRecords` if a set has images, and none of them can be one of the index."""
    kept = set() if prune else set(changes.gone)
    unusable = rejected | {
        name: reason for name, reason in changes.absent.items() if name not in kept
    }
    if 0 < len(unusable) == changes.total - len(changes.removed):
        bad = unusable | changes.faults
        reason = "so that no image is left. Mend them"
        raise TooManyBadRecords(_listed(out, bad, changes.records_in_all, reason))


def _listed(out: Path, bad: dict[str, str], total: int, reason: str) -> str:
    """Message of an error about bad records."""
    listed = [f"  {name}: {bad[name]}" for name in list(bad)[:LISTED]]
    if len(bad) > LISTED:
        listed.append(f"  and {len(bad) - LISTED:,} more")
    return (
        f"{out}: {len(bad)} of {total} records are bad, {reason} or take them out of the set:\n"
        + "\n".join(listed)
    )


def _rejected_in(parts: list[dict[str, Any]]) -> dict[str, str]:
    return {name: reason for part in parts for name, reason in part["rejected"].items()}


def _forget_rejected(out: Path, parts: list[dict[str, Any]]) -> None:
    """Let the next build try the bad images again; clear this one away if it encoded nothing."""
    for part in parts:
        if part["rejected"]:
            record_of(out, part["shard"]["number"]).unlink(missing_ok=True)
    if not any(part["shard"]["rows"] for part in parts):
        _clear(out, parts)


def with_shards(out: Path, manifest: Manifest, parts: list[dict[str, Any]]) -> Manifest:
    """Manifest of an index with finished shards added."""
    if (out / "manifest.json").exists():
        # Images may have been removed while this ran.
        manifest = dataclasses.replace(manifest, removed=Manifest.read(out).removed)
    records = [part["shard"] for part in parts if part["shard"]["rows"]]
    rejected = manifest.rejected | _rejected_in(parts)
    hidden = [*rejected, *manifest.dropped]
    at, _ = find_rows([Shard(out, record, manifest) for record in records], hidden)
    fresh = {name for name, position in zip(hidden, at, strict=True) if position >= 0}
    return dataclasses.replace(
        manifest,
        shards=(*manifest.shards, *records),
        rejected={name: reason for name, reason in rejected.items() if name not in fresh},
        dropped=tuple(name for name in manifest.dropped if name not in fresh),
    )


def _with_words(
    out: Path, manifest: Manifest, changes: Changes, embed: Embed
) -> tuple[dict[str, Any], ...]:
    """Records of all shards, those written anew whose captions, paths or stamps changed."""
    shards = list(manifest.shards)
    for shard in sorted({shard for shard, _ in changes.rewritten}):
        before = read_rows(file_of(out, shards[shard], "rows"))
        rows = [changes.rewritten.get((shard, number), row) for number, row in enumerate(before)]
        shards[shard] = rewrite_words(out, manifest, shards[shard], rows, embed)
    return tuple(shards)


def commit(out: Path, before: Manifest, now: Manifest, parts: list[dict[str, Any]]) -> None:
    """Write the manifest if it differs from the one before, and clear the build away."""
    is_first = not (out / "manifest.json").exists()
    if now.shards if is_first else now != before:
        now = with_gone(out, now)
        with (
            atomic_path(out / "rejected.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            listed = [*now.rejected.items(), *now.faults.items()]
            csv.writer(file).writerows([("id", "reason"), *listed])
        now.write(out)
    _clear(out, parts)


def _clear(out: Path, parts: list[dict[str, Any]]) -> None:
    """Delete what a build needed while it ran."""
    empty = [part["shard"]["files"] for part in parts if not part["shard"]["rows"]]
    made = [name for names in empty for name in names]
    records = [record_of(out, part["shard"]["number"]).name for part in parts]
    # Delete the plan last: until then, the next build finds and clears what a killed one left.
    cut_short = [path.name for path in out.glob("*.tmp")]
    clear_unfinished(out)
    for name in (*made, *cut_short, *records, "build.json"):
        (out / name).unlink(missing_ok=True)
