"""Care of the first stages that an index keeps: whether they are whole, and of any use still."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from edje_jax.index.caption_columns import CODES
from edje_jax.index.first_stages import StagePlace, Stamp
from edje_jax.index.shard_files import checksum
from edje_jax.index.store import Store
from edje_jax.system.files import lock_file

_PLAIN = {codes: column for column, codes in CODES.items()}
"""Column of codes -> that of the embeddings that they go with."""


def stored_stages(store: Store) -> Iterator[tuple[Path, StagePlace | None, Stamp | None]]:
    """(folder, what it is of, its stamp) of every stored first stage; None where that is damaged,
    or of another version."""
    for path in sorted((store.folder / "first-stage").glob("*/*/stamp.json")):
        place = stamp = None
        try:
            place = _place(store, path.parent)
            stamp = place.read_stamp()
        except (OSError, ValueError, TypeError, KeyError):
            pass
        yield path.parent, place, stamp


def verify_first_stages(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, its fault) for every first stage of an index that is not as it was written."""
    for path, _, stamp in stored_stages(Store(folder)):
        name = f"{path.relative_to(folder)}"
        if stamp is None:
            yield f"{name}/stamp.json", "damaged, or of another version; delete the folder"
        elif checksum(path / stamp.file["name"]) != stamp.file["sha256"]:
            yield f"{name}/{stamp.file['name']}", "not what was written: its checksum differs"


def tidy_first_stages(folder: Path) -> None:
    """Delete the first stages of an index that hold little of what is in it now."""
    for path, place, stamp in stored_stages(Store(folder)):
        if place is None or stamp is None or not stamp.is_worth_keeping(place.covers):
            # Another process may be building it.
            with suppress(BlockingIOError), lock_file(path / "lock"):
                shutil.rmtree(path, ignore_errors=True)


def _place(store: Store, folder: Path) -> StagePlace:
    name, column = folder.parent.name, folder.name
    if column not in _PLAIN:
        return StagePlace.of(store, name, column, None)
    kind, _, bits = name.rpartition("-")
    return StagePlace.of(store, kind, _PLAIN[column], int(bits))
