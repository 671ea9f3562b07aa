"""Care of the first stages that an index keeps: whether they are whole, and of any use still."""

import os
from collections.abc import Iterator

from edje_jax.index.caption_columns import CODES
from edje_jax.index.files import IndexFiles
from edje_jax.index.first_stages import StagePlace, Stamp
from edje_jax.index.partition import Partition
from edje_jax.index.store import Store

_PLAIN = {codes: column for column, codes in CODES.items()}
"""Column of codes -> that of the embeddings that they go with."""


def stored_stages(store: Store) -> Iterator[tuple[str, StagePlace | None, Stamp | None]]:
    """(folder's name in the index, what it is of, its stamp) of every stored first stage, those of
    parts too; None where that is damaged, or of another version."""
    for stage in store.files.stages():
        place = stamp = None
        try:
            place = _place(store, stage)
            stamp = place.parse_stamp(store.files.read_json(f"{stage}/stamp.json"))
            if stamp and store.files.size(f"{stage}/{stamp.file['name']}") != stamp.file["bytes"]:
                stamp = None
        except (OSError, ValueError, TypeError, KeyError):
            pass
        yield stage, place, stamp


def verify_first_stages(index: str | os.PathLike[str] | IndexFiles) -> Iterator[tuple[str, str]]:
    """(file, its fault) for every first stage of an index that is not as it was written."""
    store = Store(index)
    for stage, _, stamp in stored_stages(store):
        if stamp is None:
            yield f"{stage}/stamp.json", "damaged, or of another version; delete the folder"
        elif store.files.checksum(f"{stage}/{stamp.file['name']}") != stamp.file["sha256"]:
            yield f"{stage}/{stamp.file['name']}", "not what was written: its checksum differs"


def tidy_first_stages(index: str | os.PathLike[str] | IndexFiles) -> None:
    """Delete the first stages of an index that hold little of what is in it now."""
    store = Store(index)
    for stage, place, stamp in stored_stages(store):
        if place is None or stamp is None or not stamp.is_worth_keeping(place.covers):
            store.files.delete_stage(stage)


def _place(store: Store, stage: str) -> StagePlace:
    *part, _, name, column = stage.split("/")
    if part:  # partitions/0-of-4
        number, of = map(int, part[-1].split("-of-"))
        store = Partition(store.folder, store.manifest, number, of).open()
    if column not in _PLAIN:
        return StagePlace.of(store, name, column, None)
    kind, _, bits = name.rpartition("-")
    return StagePlace.of(store, kind, _PLAIN[column], int(bits))
