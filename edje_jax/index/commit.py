"""The end of a build: finished shards become part of the index, all at once."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edje_jax.data.bad_records import TooManyBadRecords, are_too_many
from edje_jax.index.changes import Changes
from edje_jax.index.changing import changing, renewed
from edje_jax.index.files import IndexFiles
from edje_jax.index.gone import with_gone
from edje_jax.index.manifest import Manifest
from edje_jax.index.rewrite import Embed, rewrite_words
from edje_jax.index.shard import find_rows, open_shards
from edje_jax.index.shard_files import read_rows
from edje_jax.index.shard_writer import ShardWriter, clear_unfinished

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


def record_of(number: int) -> str:
    """Name of a finished shard's record until the build is complete."""
    return f"shard-{number:05d}.json"


def finish(
    out: IndexFiles,
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
    with changing(out):
        try:
            parts = out.read_all(map(record_of, numbers))
        except FileNotFoundError:
            # Another process's shards are missing, or it was the last one and has completed it.
            if out.exists("build.json"):
                return None
            return Report.of(changes, Manifest.read(out).rejected)
        return _finish(out, before, changes, parts, spec, max_bad, prune, embed)


def _finish(
    out: IndexFiles,
    before: Manifest,
    changes: Changes,
    parts: list[dict[str, Any]],
    spec: str,
    max_bad: float,
    prune: bool,
    embed: Embed,
) -> Report:
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


def keep_shard(out: IndexFiles, writer: ShardWriter, metadata: Sequence[str]) -> None:
    """Finish a shard and keep its record until the build is complete."""
    record = {"shard": writer.finish(metadata), "rejected": writer.rejected}
    out.publish(record["shard"]["files"])
    out.write_json(record_of(writer.number), record)
    writer.clear()
    out.release(record["shard"]["files"])


def finished_records(out: IndexFiles) -> list[str]:
    """Names of the records of the finished shards of a build."""
    return [name for name in out.names("shard-*.json") if name.count(".") == 1]


def finished_parts(out: IndexFiles) -> list[dict[str, Any]]:
    """Records of the finished shards of a build, and {id: reason} of what they reject."""
    return out.read_all(finished_records(out))


def refuse_many(
    out: IndexFiles, rejected: dict[str, str], changes: Changes, max_bad: float
) -> None:
    """Raise `TooManyBadRecords` for more than may be bad."""
    bad, total = rejected | changes.faults, changes.records_in_all
    if are_too_many(len(bad), total, max_bad):
        reason = f"more than --max-bad {max_bad:g} allows. Raise the limit, or mend them"
        raise TooManyBadRecords(_listed(out, bad, total, reason))


def _refuse_none_left(
    out: IndexFiles, rejected: dict[str, str], changes: Changes, prune: bool
) -> None:
    """Raise `TooManyBadRecords` if a set has images, and none of them can be one of the index."""
    kept = set() if prune else set(changes.gone)
    unusable = rejected | {
        name: reason for name, reason in changes.absent.items() if name not in kept
    }
    if 0 < len(unusable) == changes.total - len(changes.removed):
        bad = unusable | changes.faults
        reason = "so that no image is left. Mend them"
        raise TooManyBadRecords(_listed(out, bad, changes.records_in_all, reason))


def _listed(out: IndexFiles, bad: dict[str, str], total: int, reason: str) -> str:
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


def _forget_rejected(out: IndexFiles, parts: list[dict[str, Any]]) -> None:
    """Let the next build try the bad images again; clear this one away if it encoded nothing."""
    out.delete([record_of(part["shard"]["number"]) for part in parts if part["rejected"]])
    if not any(part["shard"]["rows"] for part in parts):
        _clear(out, parts)


def with_shards(out: IndexFiles, manifest: Manifest, parts: list[dict[str, Any]]) -> Manifest:
    """Manifest of an index with finished shards added.

    Raises:
        BadStore: another process has changed its shards since the manifest was read.
    """
    now = renewed(out, manifest)
    manifest = dataclasses.replace(manifest, removed=now.removed, shards=now.shards)
    records = [part["shard"] for part in parts if part["shard"]["rows"]]
    rejected = manifest.rejected | _rejected_in(parts)
    hidden = [*rejected, *manifest.dropped]
    at, _ = find_rows(open_shards(out, records, manifest), hidden)
    fresh = {name for name, position in zip(hidden, at, strict=True) if position >= 0}
    return dataclasses.replace(
        manifest,
        shards=(*manifest.shards, *records),
        rejected={name: reason for name, reason in rejected.items() if name not in fresh},
        dropped=tuple(name for name in manifest.dropped if name not in fresh),
    )


def _with_words(
    out: IndexFiles, manifest: Manifest, changes: Changes, embed: Embed
) -> tuple[dict[str, Any], ...]:
    """Records of all shards, those written anew whose captions, paths or stamps changed."""
    shards = list(manifest.shards)
    for shard in sorted({shard for shard, _ in changes.rewritten}):
        before = read_rows(out.path(shards[shard], "rows"))
        rows = [changes.rewritten.get((shard, number), row) for number, row in enumerate(before)]
        shards[shard] = rewrite_words(out, manifest, shards[shard], rows, embed)
    return tuple(shards)


def commit(out: IndexFiles, before: Manifest, now: Manifest, parts: list[dict[str, Any]]) -> None:
    """Write the manifest if it differs from the one before, and clear the build away."""
    is_first = not out.exists("manifest.json")
    if now.shards if is_first else now != before:
        now = with_gone(out, now)
        listed = io.StringIO(newline="")
        rows = [("id", "reason"), *now.rejected.items(), *now.faults.items()]
        csv.writer(listed).writerows(rows)
        out.write("rejected.csv", listed.getvalue().encode())
        now.write(out)
    _clear(out, parts)


def _clear(out: IndexFiles, parts: list[dict[str, Any]]) -> None:
    """Delete what a build needed while it ran."""
    empty = [part["shard"]["files"] for part in parts if not part["shard"]["rows"]]
    made = [name for names in empty for name in names]
    records = [record_of(part["shard"]["number"]) for part in parts]
    # Delete the plan last: until then, the next build finds and clears what a killed one left.
    cut_short = out.names("*.tmp")
    clear_unfinished(out.folder)
    out.delete([*made, *cut_short, *records, "build.json"])
