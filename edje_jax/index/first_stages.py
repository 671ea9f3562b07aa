"""First stages kept in an index, under `first-stage/NAME/COLUMN/`, or `NAME-BITS/` for codes.

A stored first stage is one file, and `stamp.json` beside it, which says how many rows of which
shards are in it:

    {"format", "version", "file": {"name", "bytes", "sha256"}, "trained_on": rows,
     "covers": [{"shard", "rows", "sha256" of the column's file}],
     "effort", "recall_at_100": {effort: recall}, "asked_by"}

It is built shard by shard and stored now and then: what a build that was killed has stored, the
next one goes on with. Shards that were added to the index later are searched exactly until the
first stage is extended, and rows that count no more are never found. A folder that cannot be
written to costs time, not answers.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edje_jax.first_stage.base import FirstStage, StoredStage
from edje_jax.first_stage.registry import find_first_stage
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.covering import Covering
from edje_jax.index.files import IndexFiles
from edje_jax.index.recall import choose_effort
from edje_jax.index.shard_files import BadStore, checksum, name_of
from edje_jax.index.store import Store
from edje_jax.system.files import lock_file, read_json, write_json

log = logging.getLogger(__name__)

FORMAT = 2
SAVE_SECONDS = 300.0
"""Time after which a first stage that is being built is stored."""
GROWTH = 4
"""How many times as many rows as it was trained on a first stage holds before it is built anew."""
BuildProgress = Callable[[int, int], None]
"""Function of (rows done, rows in all)."""


@dataclass(frozen=True)
class Stamp:
    """Content of `stamp.json`."""

    version: int
    trained_on: int
    covers: tuple[dict[str, Any], ...] = ()
    file: dict[str, Any] = field(default_factory=dict)
    effort: int = 0
    recall_at_100: dict[str, float] = field(default_factory=dict)
    asked_by: str = ""
    """Column whose rows asked when the recall was measured."""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Rows in the first stage."""
        return sum(one["rows"] for one in self.covers)


@dataclass(frozen=True)
class StagePlace:
    """What a first stage is of, and where it is kept."""

    store: Store
    name: str
    column: str
    """Column whose rows it holds."""
    vectors: Column
    """All rows of that column, whether they count or not."""
    folder: Path

    @classmethod
    def of(cls, store: Store, name: str, column: str, bits: int | None) -> "StagePlace":
        """First stage of a column of embeddings, or of the codes that go with it.

        Raises:
            ValueError: no first stage has that name, or the index has no codes of that length.
        """
        bits = check_bits(store, name, bits)
        column = CODES[column] if bits else column
        vectors = store.column(column)
        if bits:
            vectors = vectors.beginning(bits // 8)
        folder = store.folder / "first-stage" / (f"{name}-{bits}" if bits else name) / column
        return cls(store, name, column, vectors.every_row(), folder)

    @property
    def kind(self) -> type[FirstStage]:
        """Class of the first stage."""
        return find_first_stage(self.name)

    def covers(self) -> tuple[dict[str, Any], ...]:
        """Entry of `covers` for every shard of the index."""
        out = []
        for record, part in zip(self.store.manifest.shards, self.vectors.parts, strict=True):
            file = record["files"][name_of(record, self.column, self.store.files)]
            out.append({"shard": record["number"], "rows": len(part), "sha256": file["sha256"]})
        return tuple(out)

    def read_stamp(self) -> Stamp | None:
        """Stamp of what is stored; None if nothing is, or nothing that this version can use.

        Raises:
            OSError, ValueError: it is damaged.
        """
        path = self.folder / "stamp.json"
        if not path.exists():
            return None
        stamp = self.parse_stamp(read_json(path))
        if stamp is None:
            return None
        size = (self.folder / stamp.file["name"]).stat().st_size
        if size != stamp.file["bytes"]:
            raise ValueError(f"{stamp.file['name']} has {size} bytes, not {stamp.file['bytes']}")
        return stamp

    def parse_stamp(self, raw: dict[str, Any]) -> Stamp | None:
        """Stamp of what `stamp.json` says; None if this version cannot use what it is of.

        Raises:
            ValueError, TypeError, KeyError: it is damaged.
        """
        version = getattr(self.kind, "version", None)
        if raw.get("format") != FORMAT or raw.get("version") != version:
            return None
        return Stamp(**{**raw, "covers": tuple(raw["covers"])})

    @property
    def stage(self) -> str:
        """Name of the folder in the index."""
        return self.folder.relative_to(self.store.folder).as_posix()

    def fetch(self) -> None:
        """Have what is stored in a remote index here, if it covers more than what is here does."""
        here = self.read_stamp()

        def is_wanted(raw: dict[str, Any]) -> bool:
            stamp = self.parse_stamp(raw)
            if stamp is None or not _is_worth_keeping(stamp, self.covers()):
                return False
            return here is None or stamp.rows > here.rows

        self.store.files.fetch_stage(self.stage, is_wanted)


def open_first_stage(store: Store, name: str, column: str, bits: int | None = None) -> Covering:
    """First stage over a column of embeddings, or over the codes that go with it: the stored one,
    if there is one, else a new one.

    `bits` is the length of codes; None takes the longest.

    Raises:
        ValueError: no first stage has that name, or `bits` is not a length of the index's codes.
        ModuleNotFoundError: a library that it needs is not installed.
    """
    place = StagePlace.of(store, name, column, bits)
    if not place.kind.is_stored or not len(place.vectors):
        place.vectors.fetch()
        return _covering(place, place.kind.build(place.vectors), place.covers())
    found = _open_stored(place)
    if found is None:
        try:
            extend_first_stage(store, name, column, bits)
            found = _open_stored(place)
        except OSError as error:
            log.warning(
                "the first stage is built anew at every opening: it cannot be kept (%s)", error
            )
    if found is None:
        return _covering(place, place.kind.build(place.vectors), place.covers())
    return found


def _open_stored(place: StagePlace) -> Covering | None:
    """Stored first stage; None if there is none that can be used."""
    try:
        place.fetch()
        stamp = place.read_stamp()
        if stamp is None or not _is_worth_keeping(stamp, place.covers()):
            return None
        stage = _stored_kind(place).open(place.folder / stamp.file["name"])
        if len(stage) != stamp.rows:
            raise ValueError(f"{stamp.file['name']} has {len(stage)} rows, not {stamp.rows}")
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: damaged (%s); it is built anew", place.folder, error)
        shutil.rmtree(place.folder, ignore_errors=True)
        return None
    stage.effort = stamp.effort
    covering = _covering(place, stage, stamp.covers)
    if (missing := covering.num_uncovered) > len(place.vectors) // 10:
        log.warning(
            "%s: %s of %s rows are not in this first stage and are searched one by one; extend it"
            " with edje index first-stage %s %s", place.folder, f"{missing:,}",
            f"{len(place.vectors):,}", place.store.files, place.name,
        )  # fmt: skip
    return covering


def _is_worth_keeping(stamp: Stamp, covers: tuple[dict[str, Any], ...]) -> bool:
    """Whether most of what a first stage holds is in the index still."""
    there = sum(one["rows"] for one in stamp.covers if one in covers)
    return 0 < stamp.rows <= 2 * there


def _covering(place: StagePlace, stage: FirstStage, covers: tuple[dict[str, Any], ...]) -> Covering:
    now = place.covers()
    positions = [now.index(one) if one in now else -1 for one in covers]
    of_captions = place.store.manifest.column_types[place.column].per == "caption"
    places = place.store.caption_places if of_captions else place.store.places
    sizes = [one["rows"] for one in covers]
    return Covering(stage, positions, sizes, place.vectors, places)


def extend_first_stage(
    store: Store,
    name: str,
    column: str,
    bits: int | None = None,
    progress: BuildProgress | None = None,
) -> Stamp:
    """Bring a stored first stage up to its index: what is missing is added, and what there is of a
    build that was killed is gone on with.

    Returns:
        Its stamp, with the recall that was measured.

    Raises:
        OSError: it cannot be stored, or another process is building it.
        ValueError, ModuleNotFoundError: as for `open_first_stage`.
    """
    place = StagePlace.of(store, name, column, bits)
    place.folder.mkdir(parents=True, exist_ok=True)
    place.vectors.fetch()
    with lock_file(place.folder / "lock"):
        stage, stamp = _begin(place)
        known, total = list(stamp.covers), len(place.vectors)
        done, saved, first = stamp.rows, time.monotonic(), 0
        for cover, part in zip(place.covers(), place.vectors.parts, strict=True):
            first += len(part)
            if cover in known:
                continue
            stage.add(place.vectors[first - len(part) : first])
            known.append(cover)
            done += len(part)
            stamp = replace(stamp, covers=tuple(known))
            if progress:
                progress(done, total)
            if time.monotonic() - saved > SAVE_SECONDS and done < total:
                stamp, saved = _save(place, stage, stamp), time.monotonic()
        return _save(place, stage, _with_recall(place, stage, stamp))


def _begin(place: StagePlace) -> tuple[StoredStage, Stamp]:
    """First stage to go on with, or one without rows."""
    kind, covers = _stored_kind(place), place.covers()
    try:
        place.fetch()
        stamp = place.read_stamp()
        if (
            stamp
            and _is_worth_keeping(stamp, covers)
            and (not kind.efforts or len(place.vectors) <= GROWTH * stamp.trained_on)
        ):
            return kind.open(place.folder / stamp.file["name"], grows=True), stamp
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: damaged (%s); it is built anew", place.folder, error)
    return kind.start(place.vectors), Stamp(kind.version, len(place.vectors))


def _save(place: StagePlace, stage: StoredStage, stamp: Stamp) -> Stamp:
    """Store a first stage under a name of its own, then its stamp, then drop what was there."""
    temporary = place.folder / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        written = stage.write(temporary)
        file = {"name": written.name, "bytes": written.stat().st_size, "sha256": checksum(written)}
        written.replace(place.folder / written.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    stamp = replace(stamp, file=file)
    write_json(place.folder / "stamp.json", asdict(stamp))
    for path in place.folder.iterdir():
        if path.name not in ("lock", "stamp.json", file["name"]):
            path.unlink(missing_ok=True)
    return stamp


def _with_recall(place: StagePlace, stage: StoredStage, stamp: Stamp) -> Stamp:
    """Stamp with the effort that an approximate first stage needs, and its recall."""
    if not stage.efforts:
        return stamp
    covering = _covering(place, stage, stamp.covers)
    asked_by = _asking_column(place)
    queries = place.store.column(asked_by)
    if asked_by in CODES.values():
        queries = queries.beginning(place.vectors.shape[1])
    effort, recalls = choose_effort(stage, covering, place.vectors, queries)
    return replace(stamp, effort=effort, recall_at_100=recalls, asked_by=asked_by)


def _asking_column(place: StagePlace) -> str:
    """Column whose rows ask as users do: the other modality, where there is any of it."""
    pairs = [tuple(CODES), tuple(CODES.values())]
    images, captions = next(pair for pair in pairs if place.column in pair)
    other = captions if place.column == images else images
    return other if len(place.store.captions) else place.column


def _stored_kind(place: StagePlace) -> type[StoredStage]:
    return place.kind  # type: ignore[return-value]


def check_bits(store: Store, name: str, bits: int | None) -> int | None:
    """Length in bits of the codes that a first stage reads; None for one that reads embeddings.

    Raises:
        BadStore: the index has no codes.
        ValueError: no first stage has that name, it reads no codes, or codes have no such length.
    """
    if find_first_stage(name).reads != "codes":
        if bits is not None:
            raise ValueError(
                f"--bits {bits}: the first stage {name!r} reads embeddings; choose one of codes, or"
                " leave it out"
            )
        return None
    lengths = store.manifest.model.get("code_lengths", [])
    if not lengths:
        raise BadStore(
            f"{store.files}: no codes in this index, which the first stage {name!r} reads; train"
            " heads with edje train first_stage --init MODEL, and build an index with that model"
        )
    if bits is not None and bits not in lengths:
        listed = ", ".join(map(str, lengths))
        raise ValueError(f"--bits {bits}: the codes of {store.files} have {listed}")
    return bits or max(lengths)


def publish_first_stage(store: Store, name: str, column: str, bits: int | None = None) -> None:
    """Bring a first stage that is stored here to where the index is, if that is elsewhere.

    Raises:
        OSError: it cannot be sent.
        ValueError: as for `open_first_stage`.
    """
    store.files.publish_stage(StagePlace.of(store, name, column, bits).stage)


def tidy_first_stages(index: str | os.PathLike[str] | IndexFiles) -> None:
    """Delete the first stages of an index that hold little of what is in it now."""
    store = Store(index)
    for stage in store.files.stages():
        _, name, column = stage.split("/")
        try:
            kind, _, bits = name.rpartition("-")
            is_coded = column in CODES.values()
            plain = {codes: column for column, codes in CODES.items()}.get(column, column)
            place = StagePlace.of(
                store, kind if is_coded else name, plain, int(bits) if is_coded else None
            )
            stamp = place.parse_stamp(store.files.read_json(f"{stage}/stamp.json"))
            keep = stamp is not None and _is_worth_keeping(stamp, place.covers())
        except (OSError, ValueError, TypeError, KeyError):
            keep = False
        if not keep:
            store.files.delete_stage(stage)
