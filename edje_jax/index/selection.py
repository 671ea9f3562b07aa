"""Images that a search may find: those of a list of ids, those that a filter holds for, or both."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from edje_jax.index.metadata import import_pyarrow
from edje_jax.index.shard import Shard, find_rows
from edje_jax.index.store import Store
from edje_jax.index.where import Where


@dataclass(frozen=True, eq=False)
class Selection:
    """Images, or captions, that a search may find."""

    numbers: Int[np.ndarray, " n"]
    """Numbers of the images or captions, rising."""
    images: Int[np.ndarray, " m"]
    """Numbers of the images that they are or belong to, rising."""
    store: Store
    where: Where | None = None
    """Filter that chose the images; None if ids did, alone or too."""

    @cached_property
    def captions(self) -> "Selection":
        """The captions of these images."""
        numbers = self.store.captions_of(self.images)
        return Selection(np.sort(numbers), self.images, self.store, self.where)


def select(
    store: Store, ids: Iterable[str] | None = None, where: str | None = None
) -> Selection | None:
    """Images whose id is given and for which a filter holds; None if there is neither.

    An id that the index does not have chooses nothing.

    Raises:
        ValueError: `ids` is a single string, or one of them is no string.
        BadWhere: the filter cannot be read, or does not fit the index's metadata.
        ModuleNotFoundError: a filter needs pyarrow, which is not installed.
    """
    if ids is None and where is None:
        return None
    filter = None if where is None else Where.parse(where)
    parts = []
    if ids is not None:
        found = store.image_of_id.find(_different(ids))
        parts.append(np.unique(found[found >= 0]))
    if filter is not None:
        parts.append(_matching(store, filter))
    images = parts[0] if len(parts) == 1 else np.intersect1d(*parts, assume_unique=True)
    return Selection(images, images, store, filter if ids is None else None)


def _different(ids: Iterable[str]) -> list[str]:
    """The ids, each once."""
    if isinstance(ids, str):
        raise ValueError(f"ids is the single string {ids!r}; give a list of them")
    given = list(ids)
    for id in given:
        if not isinstance(id, str):
            raise ValueError(f"ids: {id!r} is of type {type(id).__name__}; give strings")
    return list(dict.fromkeys(given))


def _matching(store: Store, where: Where) -> Int[np.ndarray, " n"]:
    """Images for which a filter holds, rising."""
    where.check(store.metadata_kinds)
    chosen = []
    asked = list(where.ids)
    at, own = find_rows(store.shards, asked)
    for position, shard in enumerate(store.shards):
        known = {asked[i]: int(own[i]) for i in np.flatnonzero(at == position)}
        rows = np.flatnonzero(_holds(shard, where, known))
        numbers = store.places.number(np.full(len(rows), position), rows)
        chosen.append(numbers[numbers >= 0])
    return np.concatenate([np.empty(0, np.int64), *chosen])


def _holds(shard: Shard, where: Where, known: dict[str, int]) -> Bool[np.ndarray, " rows"]:
    """Whether a filter holds for each row of a shard, whose rows of the filter's ids are known."""

    def rows_of_ids(ids: Iterable[str]) -> Bool[np.ndarray, " rows"]:
        out = np.zeros(len(shard), bool)
        out[[known[id] for id in ids if id in known]] = True
        return out

    table = shard.metadata
    if table is None:  # Ids can be asked for all the same
        pa = import_pyarrow()
        table = pa.table({"": pa.nulls(len(shard))})
    return where.mask(table, rows_of_ids)
