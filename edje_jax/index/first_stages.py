"""First stages kept in an index, under `first-stage/NAME/COLUMN/`, or `NAME-BITS/` for codes.

`stamp.json` beside a first stage's files says which rows of which shards it was built from. Where
these are not the index's rows any more (images were added, removed, given other captions), it is
built anew. A folder that cannot be written to costs time, not answers.
"""

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from edje_jax.first_stage.base import FirstStage
from edje_jax.first_stage.registry import find_first_stage
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.shard_files import BadStore, kind_of
from edje_jax.index.store import Store
from edje_jax.system.files import is_abandoned, move, read_json, write_json

log = logging.getLogger(__name__)


def open_first_stage(store: Store, name: str, column: str, bits: int | None = None) -> FirstStage:
    """First stage over a column of embeddings, or over the codes that go with it: the stored one,
    if it is of these rows, else a new one.

    `bits` is the length of codes; None takes the longest.

    Raises:
        ValueError: no first stage has that name, or `bits` is not a length of the index's codes.
        ModuleNotFoundError: a library that it needs is not installed.
    """
    kind, bits = find_first_stage(name), check_bits(store, name, bits)
    column = CODES[column] if bits else column
    vectors = store.column(column)
    if bits:
        vectors = vectors.beginning(bits // 8)
    if not kind.is_stored or not len(vectors):
        return kind.build(vectors, None)
    folder = store.folder / "first-stage" / (f"{name}-{bits}" if bits else name) / column
    stamp = _stamp(store, column, vectors, kind.version)
    try:
        if (folder / "stamp.json").exists() and read_json(folder / "stamp.json") == stamp:
            return kind.open(folder)
    except (OSError, RuntimeError, ValueError) as error:
        log.warning("%s: damaged (%s); it is built anew", folder, error)
    try:
        return _build(kind, vectors, folder, stamp)
    except OSError as error:
        log.warning("the first stage is built anew at every opening: it cannot be kept (%s)", error)
        return kind.build(vectors, None)


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
            f"{store.folder}: no codes in this index, which the first stage {name!r} reads; train"
            " heads with edje train first_stage --init MODEL, and build an index with that model"
        )
    if bits is not None and bits not in lengths:
        listed = ", ".join(map(str, lengths))
        raise ValueError(f"--bits {bits}: the codes of {store.folder} have {listed}")
    return bits or max(lengths)


def _stamp(store: Store, column: str, vectors: Column, version: int) -> dict[str, Any]:
    """Identity of a first stage: its version, the checksums of the column's files, and which of
    their rows count."""
    files = {
        name: file["sha256"]
        for record in store.manifest.shards
        for name, file in record["files"].items()
        if kind_of(name) == column
    }
    locations = hashlib.sha256(vectors.locations.tobytes()).hexdigest()
    rows = {"rows": len(vectors), "files": files, "locations": locations}
    return {"format": 1, "version": version, **rows}


def _build(
    kind: type[FirstStage], vectors: Column, folder: Path, stamp: dict[str, Any]
) -> FirstStage:
    """Build a first stage into a folder that takes its name once it is whole."""
    # Of this process alone: another may open the same index.
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    for left in folder.parent.glob("*.tmp"):
        if left == temporary or is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        built = kind.build(vectors, temporary)
        write_json(temporary / "stamp.json", stamp)
        shutil.rmtree(folder, ignore_errors=True)
        move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return built


def clear_first_stages(folder: Path) -> None:
    """Delete the first stages of an index; the next opening that needs one builds it."""
    shutil.rmtree(folder / "first-stage", ignore_errors=True)
