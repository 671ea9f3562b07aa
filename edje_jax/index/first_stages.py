"""First stages kept in an index, under `first-stage/NAME/COLUMN/`, or `NAME-BITS/` for codes.

A stored first stage is one file, named by its content, and `stamp.json` beside it, which says how
many rows of which shards are in it:

    {"format", "version", "file": {"name", "bytes", "sha256"}, "trained_on": rows,
     "covers": [{"shard", "rows", "sha256" of the column's file}],
     "effort", "recall_at_100": {effort: recall}, "asked_by"}

It is built shard by shard and stored now and then: what a build that was killed has stored, the
next one goes on with. Shards that were added to the index later are searched exactly until the
first stage is extended, and rows that count no more are never found. A folder that cannot be
written to costs time, not answers.
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edje_jax.first_stage.base import FirstStage, StoredStage
from edje_jax.first_stage.registry import MILVUS, find_first_stage
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.covering import Covering
from edje_jax.index.recall import choose_effort
from edje_jax.index.shard_files import BadStore, checksum, name_of
from edje_jax.index.store import Store
from edje_jax.system.files import lock_file, read_json, write_json

if TYPE_CHECKING:
    from edje_jax.index.in_milvus import InMilvus

log = logging.getLogger(__name__)

FORMAT = 2
SAVE_SECONDS = 300.0
"""Time after which a first stage that is being built is stored."""
GROWTH = 4
"""How many times as many rows as it was fitted to a first stage holds before it is built anew."""
BuildProgress = Callable[[int, int], None]
"""Function of (rows done, rows in all)."""


class Cover(NamedTuple):
    """A shard whose rows are in a first stage."""

    shard: int
    rows: int
    sha256: str
    """Checksum of the column's file."""


@dataclass(frozen=True)
class Stamp:
    """Content of `stamp.json`."""

    version: int
    trained_on: int
    covers: tuple[Cover, ...] = ()
    file: dict[str, Any] = field(default_factory=dict)
    effort: int = 0
    recall_at_100: dict[str, float] = field(default_factory=dict)
    asked_by: str = ""
    """Column whose rows asked when the recall was measured."""
    format: int = FORMAT

    @property
    def rows(self) -> int:
        """Rows in the first stage."""
        return sum(cover.rows for cover in self.covers)

    def is_worth_keeping(self, covers: Collection[Cover]) -> bool:
        """Whether most of what the first stage holds is in an index of these shards."""
        there = sum(cover.rows for cover in self.covers if cover in covers)
        return 0 < self.rows <= 2 * there

    def as_json(self) -> dict[str, Any]:
        """Content of the file."""
        return asdict(self) | {"covers": [cover._asdict() for cover in self.covers]}


@dataclass(frozen=True)
class StagePlace:
    """Index and column that a first stage is of, and its folder."""

    store: Store
    name: str
    column: str
    """Column whose rows it holds."""
    bits: int | None
    """Length of codes; None for embeddings."""
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
        folder = store.folder / store.stages / (f"{name}-{bits}" if bits else name) / column
        return cls(store, name, column, bits, vectors.every_row(), folder)

    @property
    def kind(self) -> type[FirstStage]:
        """Class of the first stage."""
        return find_first_stage(self.name)

    @cached_property
    def covers(self) -> dict[Cover, int]:
        """Position of every shard of the index."""
        out = {}
        for record, part in zip(self.store.manifest.shards, self.vectors.parts, strict=True):
            file = record["files"][name_of(record, self.column, self.store.files)]
            out[Cover(record["number"], len(part), file["sha256"])] = len(out)
        return out

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
        covers = tuple(Cover(**cover) for cover in raw["covers"])
        return Stamp(**{**raw, "covers": covers})

    @property
    def stage(self) -> str:
        """Name of the folder in the index."""
        return self.folder.relative_to(self.store.folder).as_posix()

    def fetch(self) -> None:
        """Have what is stored in a remote index here, if it covers more than what is here does."""
        here = self.read_stamp()
        if here and here.covers == tuple(self.covers):
            return

        def is_wanted(raw: dict[str, Any]) -> bool:
            stamp = self.parse_stamp(raw)
            if stamp is None or not stamp.is_worth_keeping(self.covers):
                return False
            return here is None or stamp.rows > here.rows

        self.store.files.fetch_stage(self.stage, is_wanted)


def open_first_stage(
    store: Store, name: str, column: str, bits: int | None = None
) -> "Covering | InMilvus":
    """First stage over a column of embeddings, or over the codes that go with it: the stored one,
    if there is one, else a new one.

    `bits` is the length of codes; None takes the longest, or embeddings where Milvus searches.

    Raises:
        ValueError: no first stage has that name, or `bits` is not a length of the index's codes;
            Milvus holds another state of the index (`StaleCollection`).
        ModuleNotFoundError: a library that it needs is not installed.
    """
    if name.startswith(MILVUS):
        from edje_jax.index.in_milvus import open_in_milvus

        return open_in_milvus(store, name, column, check_bits(store, name, bits))
    place = StagePlace.of(store, name, column, bits)
    if not place.kind.is_stored:
        place.vectors.fetch()
    found = _read_or_build(place) if place.kind.is_stored and len(place.vectors) else None
    if found is None:
        return _covering(place, place.kind.build(place.vectors), place.covers)
    stage, stamp = found
    covering = _covering(place, stage, stamp.covers)
    if (missing := covering.num_uncovered) > len(place.vectors) // 10:
        option = f" --bits {place.bits}" if place.bits else ""
        log.warning(
            "%s: %s of %s rows are not in this first stage and are searched one by one; extend it"
            " with edje index first-stage %s %s%s", place.folder, f"{missing:,}",
            f"{len(place.vectors):,}", store.files, name, option,
        )  # fmt: skip
    return covering


def _read_or_build(place: StagePlace) -> tuple[StoredStage, Stamp] | None:
    """Stored first stage and its stamp; None if there is none and none can be stored."""
    if found := _read(place):
        return found
    try:
        try:
            _extend(place)
        except BlockingIOError:
            log.info("%s: waiting for another process that builds it", place.folder)
            _extend(place, wait=True)  # It is stored, by the time that this one's turn comes
    except OSError as error:
        if found := _read(place):
            return found
        log.warning("the first stage is built anew at every opening: it cannot be kept (%s)", error)
    return _read(place)


def _read(place: StagePlace, grows: bool = False) -> tuple[StoredStage, Stamp] | None:
    """Stored first stage, to be searched or to grow, and its stamp; None if none can be used."""
    try:
        place.fetch()
        stamp = place.read_stamp()
        if stamp is None or not stamp.is_worth_keeping(place.covers):
            return None
        file = place.folder / stamp.file["name"]
        if grows and checksum(file) != stamp.file["sha256"]:
            raise ValueError(f"{file.name} is not what was written: its checksum differs")
        stage = _stored_kind(place).open(file, grows)
        if len(stage) != stamp.rows:
            raise ValueError(f"{stamp.file['name']} has {len(stage)} rows, not {stamp.rows}")
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        if grows:
            log.warning("%s: damaged (%s); it is built anew", place.folder, error)
        return None
    stage.effort = stamp.effort
    return stage, stamp


def _covering(place: StagePlace, stage: FirstStage, covers: Collection[Cover]) -> Covering:
    positions = [place.covers.get(cover, -1) for cover in covers]
    of_captions = place.store.manifest.column_types[place.column].per == "caption"
    places = place.store.caption_places if of_captions else place.store.places
    return Covering(stage, positions, [cover.rows for cover in covers], place.vectors, places)


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
    return _extend(StagePlace.of(store, name, column, bits), progress)


def _extend(place: StagePlace, progress: BuildProgress | None = None, wait: bool = False) -> Stamp:
    place.folder.mkdir(parents=True, exist_ok=True)
    with lock_file(place.folder / "lock", wait):
        stage, stamp = _begin(place)
        known = set(stamp.covers)
        missing = [cover for cover in place.covers if cover not in known]
        if stamp.file and not missing and (stamp.recall_at_100 or not stage.efforts):
            return stamp
        place.vectors.fetch()
        starts = np.cumsum([0, *(cover.rows for cover in place.covers)]).tolist()
        left, saved = sum(cover.rows for cover in missing), time.monotonic()
        for cover in missing:
            start = starts[place.covers[cover]]
            stage.add(place.vectors[start : start + cover.rows])
            stamp = replace(stamp, covers=(*stamp.covers, cover), recall_at_100={})
            left -= cover.rows
            if progress:
                progress(starts[-1] - left, starts[-1])
            if left and time.monotonic() - saved > SAVE_SECONDS:
                stamp, saved = _save(place, stage, stamp), time.monotonic()
        return _save(place, stage, _with_recall(place, stage, stamp))


def _begin(place: StagePlace) -> tuple[StoredStage, Stamp]:
    """First stage to go on with, or one without rows."""
    kind, rows = _stored_kind(place), len(place.vectors)
    found = _read(place, grows=True)
    if found and (not kind.is_fitted or rows <= GROWTH * found[1].trained_on):
        return found
    stage = kind.start(place.vectors)
    return stage, Stamp(kind.version, rows, effort=stage.effort)


def _save(place: StagePlace, stage: StoredStage, stamp: Stamp) -> Stamp:
    """Store a first stage, then its stamp, then drop what was there."""
    temporary = place.folder / "new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        written = stage.write(temporary)
        size, sha256 = written.stat().st_size, checksum(written)
        # By its content: a file that an older stamp names is never overwritten.
        name = f"{sha256[:16]}{written.suffix}"
        written.replace(place.folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    stamp = replace(stamp, file={"name": name, "bytes": size, "sha256": sha256})
    write_json(place.folder / "stamp.json", stamp.as_json())
    for path in place.folder.iterdir():
        if path.name not in ("lock", "stamp.json", name):
            path.unlink(missing_ok=True)
    return stamp


def _with_recall(place: StagePlace, stage: StoredStage, stamp: Stamp) -> Stamp:
    """Stamp with the effort that an approximate first stage needs, and its recall."""
    if not stage.efforts:
        return stamp
    covering = _covering(place, stage, stamp.covers)
    asked_by = _asking_column(place)
    queries = place.store.column(asked_by)
    if place.bits:
        queries = queries.beginning(place.bits // 8)
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
    if name.startswith(MILVUS):
        if bits is None:
            return None
    elif find_first_stage(name).reads != "codes":
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
