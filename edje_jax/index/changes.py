"""Work of a build: the differences between a source and an index."""

import hashlib
import json
import os
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.images import BadImage
from edje_jax.data.metadata import metadata_of
from edje_jax.data.sources.texts import printable, text_fault, usable
from edje_jax.data.stamps import digest_of, stamp_of
from edje_jax.index.files import IndexFiles
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard import Shard, find_rows, open_shards
from edje_jax.index.shard_files import ImageRecord
from edje_jax.types import OnDisk, Scalar, Source


@dataclass
class Changes:
    """The images of a source, each once, by what a build does with them."""

    source: Source
    metadata_names: tuple[str, ...]
    """Names of the values that are kept of an image."""
    total: int
    """Different ids in the source."""
    duplicates: dict[int, list[int]]
    """First record of an image -> its further records, which have the same id."""
    stamps: dict[int, str] = field(default_factory=dict)
    """Record to encode -> its stamp."""
    new: list[str] = field(default_factory=list)
    """Ids without a row, or with one that did not count."""
    changed: list[str] = field(default_factory=list)
    """Ids whose image differs from that of their row."""
    rewritten: dict[tuple[int, int], ImageRecord] = field(default_factory=dict)
    """Rows whose image is the same, but not the captions, the path or the stamp, by location."""
    recaptioned: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    unstamped: int = 0
    """Number of rows of format 1, which cannot be compared and count as unchanged."""
    gone: list[str] = field(default_factory=list)
    """Ids with a row that counts, which the source no longer has or whose file is missing."""
    lost: list[str] = field(default_factory=list)
    """Ids that are gone in the same way, but whose row did not count anyway."""
    absent: dict[str, str] = field(default_factory=dict)
    """Gone or lost ids that the source does have: {id: why its image is missing}."""
    removed: list[str] = field(default_factory=list)
    """Ids in the source that were removed from the index."""
    restored: tuple[str, ...] = ()
    bad: dict[str, str] = field(default_factory=dict)
    """{id: why it cannot be an id}"""
    faults: dict[str, str] = field(default_factory=dict)
    """{record that the source left out, or id whose captions are not all usable: why}"""
    _encoded: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    @property
    def records(self) -> Int[np.ndarray, " n"]:
        """The source's first record of each image to encode."""
        return np.fromiter(self.stamps, np.int64, len(self.stamps))

    @property
    def digest(self) -> str:
        """Digest of the ids, captions and stamps to encode; it identifies an unfinished build."""
        return self._encoded.hexdigest()[:32]

    def plan_to_encode(self, record: int, id: str, captions: list[str], stamp: str) -> None:
        """Note that an image is to be encoded."""
        self.stamps[record] = stamp
        self._encoded.update(json.dumps([id, captions, stamp]).encode())

    @property
    def records_in_all(self) -> int:
        """Number of images, and of records that the source left out."""
        return self.total + len(left_out(self.source))

    def captions(self, record: int) -> tuple[list[str], str]:
        """(all usable captions of an image, each once; faults of the others, "" if there are none).

        A source may have to make its captions: ask once for each image.
        """
        texts: list[str] = []
        faults: list[str] = []
        for r in (record, *self.duplicates.get(record, ())):
            good, fault = usable(self.source.captions(r))
            texts += good
            faults += [caption_faults(self.source, r), fault]
        return list(dict.fromkeys(texts)), "; ".join(filter(None, faults))

    def row(self, record: int, captions: list[str], stamp: str, digest: str) -> ImageRecord:
        """Metadata row of an image, before its thumbnail and its strip have places in the shard."""
        source = self.source
        path = os.path.abspath(source.path(record)) if isinstance(source, OnDisk) else ""
        metadata = self._metadata(record) if self.metadata_names else {}
        name = source.image_id(record)
        return ImageRecord(name, path, captions, (0, 0), stamp, digest, metadata)

    def _metadata(self, record: int) -> dict[str, Scalar]:
        """Values of an image that are kept; the first one, where several records of it differ."""
        out: dict[str, Scalar] = {}
        for r in (record, *self.duplicates.get(record, ())):
            try:
                given = metadata_of(self.source, r)
            except BadImage:
                continue  # Reading the image will report it
            out = {name: given[name] for name in self.metadata_names if name in given} | out
        return {name: out[name] for name in self.metadata_names if name in out}


def compare(source: Source, out: IndexFiles, manifest: Manifest, restore: bool = False) -> Changes:
    """Compare a source with an index.

    Images are compared by their stamps; where these differ, or a source has none, by their digests.
    Records with the same id show the same image. `restore` treats removed ids as if they had never
    been removed.
    """
    first, duplicates = _by_id(source)
    changes = Changes(source, manifest.metadata, len(first), duplicates)
    changes.faults |= {printable(where): printable(why) for where, why in left_out(source)}
    removed = set(manifest.removed)
    if restore:
        changes.restored, removed = manifest.removed, set()
    hidden = manifest.hidden - set(changes.restored)
    shards = open_shards(out, manifest.shards, manifest)
    out.prepare(manifest.shards, ("rows",))
    locations, missing = _known(shards, list(first))
    for (name, record), location in zip(first.items(), locations, strict=True):
        row = shards[location[0]].row(location[1]) if location else None
        if name in removed:
            changes.removed.append(name)
            continue
        if reason := text_fault(name):
            changes.bad[printable(name)] = f"its name {reason}; rename it"
            continue
        captions, reason = changes.captions(record)
        if reason:
            changes.faults[name] = printable(f"indexed without a caption: {reason}")
        if row is None or location is None:
            changes.new.append(name)
            changes.plan_to_encode(record, name, captions, _stamp(source, record) or "")
        elif (stamp := _stamp(source, record)) is None:
            missing.append((location, name))
            changes.absent[name] = "its file is missing"
        elif not _is_same(source, record, stamp, row):
            changes.changed.append(name)
            changes.plan_to_encode(record, name, captions, stamp)
        else:
            _compare_words(changes, record, captions, stamp, location, row)
            if name in hidden or name in changes.restored:
                changes.new.append(name)
    for _, name in sorted(missing):
        if name not in removed:
            (changes.lost if name in hidden else changes.gone).append(name)
    return changes


Location = tuple[int, int]
"""(position of the shard in the manifest, row in it)"""


def _known(
    shards: list[Shard], ids: list[str]
) -> tuple[list[Location | None], list[tuple[Location, str]]]:
    """(last row of each id or None, (row, id) of the ids of the index that are not among them)."""
    at, rows = find_rows(shards, ids)
    locations = [
        (position, row) if position >= 0 else None
        for position, row in zip(at.tolist(), rows.tolist(), strict=True)
    ]
    asked, missing = set(ids), {}
    for position, shard in enumerate(shards):
        found = np.zeros(len(shard), bool)
        found[rows[at == position]] = True
        for row in np.flatnonzero(~found).tolist():
            if (name := shard.row(row).id) not in asked:
                missing[name] = (position, row)
    return locations, [(location, name) for name, location in missing.items()]


def _by_id(source: Source) -> tuple[dict[str, int], dict[int, list[int]]]:
    """({id: its first record}, {first record: further ones of its id})."""
    first: dict[str, int] = {}
    duplicates: dict[int, list[int]] = defaultdict(list)
    for record in range(len(source)):
        if (before := first.setdefault(source.image_id(record), record)) != record:
            duplicates[before].append(record)
    return first, dict(duplicates)


def _compare_words(
    changes: Changes,
    record: int,
    captions: list[str],
    stamp: str,
    location: tuple[int, int],
    row: ImageRecord,
) -> None:
    """Record what differs in a row whose image is the same."""
    changes.unstamped += not (row.stamp or row.digest)
    digest = row.digest or ("" if stamp else _digest(changes.source, record))
    fresh = changes.row(record, captions, stamp, digest)
    fresh = fresh._replace(thumbnail=row.thumbnail, strip=row.strip, unknown=row.unknown)
    if fresh.captions != row.captions:
        changes.recaptioned.append(row.id)
    if fresh.path != row.path:
        changes.moved.append(row.id)
    if fresh != row:
        changes.rewritten[location] = fresh


def _stamp(source: Source, record: int) -> str | None:
    """Stamp of an image; None if its file is missing, "" if reading it will report the fault."""
    try:
        return stamp_of(source, record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return ""


def _is_same(source: Source, record: int, stamp: str, row: ImageRecord) -> bool:
    if (stamp and stamp == row.stamp) or not (row.stamp or row.digest):
        return True
    return bool(row.digest) and _digest(source, record) == row.digest


def _digest(source: Source, record: int) -> str:
    """Digest of an image; "" if it cannot be read."""
    try:
        return digest_of(source, record)
    except BadImage:
        return ""
