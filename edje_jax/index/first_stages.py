"""First stages kept in an index, under `first-stage/NAME/COLUMN/`.

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
from edje_jax.index.column import Column
from edje_jax.index.shard_files import kind_of
from edje_jax.index.store import Store
from edje_jax.system.files import is_abandoned, move, read_json, write_json

log = logging.getLogger(__name__)


def open_first_stage(store: Store, name: str, column: str) -> FirstStage:
    """First stage over a column of embeddings: the stored one, if it is of these rows, else a new
    one.

    Raises:
        ValueError: no first stage has that name.
        ModuleNotFoundError: a library that it needs is not installed.
    """
    kind, vectors = find_first_stage(name), store.column(column)
    if not kind.is_stored or not len(vectors):
        return kind.build(vectors, None)
    folder = store.folder / "first-stage" / name / column
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
