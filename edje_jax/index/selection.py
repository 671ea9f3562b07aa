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


@dataclass(frozen=True)
class Selection:
    """Images, or captions, that a search may find."""

    numbers: Int[np.ndarray, " n"]
    """Their numbers, rising."""
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
        BadWhere: the filter cannot be read, or does not fit the index's metadata.
        ModuleNotFoundError: a filter needs pyarrow, which is not installed.
    """
    if ids is None and where is None:
        return None
    filter = None if where is None else Where.parse(where)
    parts = []
    if ids is not None:
        found = store.image_of_id.find(list(dict.fromkeys(ids)))
        parts.append(np.unique(found[found >= 0]))
    if filter is not None:
        parts.append(_matching(store, filter))
    images = parts[0] if len(parts) == 1 else np.intersect1d(*parts, assume_unique=True)
    return Selection(images, images, store, filter if ids is None else None)


def _matching(store: Store, where: Where) -> Int[np.ndarray, " n"]:
    """Images for which a filter holds, rising."""
    where.check(store.metadata_kinds)
    chosen = []
    for position, shard in enumerate(store.shards):
        rows = np.flatnonzero(_holds(shard, where))
        numbers = store.places.number(np.full(len(rows), position), rows)
        chosen.append(numbers[numbers >= 0])
    return np.concatenate([np.empty(0, np.int64), *chosen])


def _holds(shard: Shard, where: Where) -> Bool[np.ndarray, " rows"]:
    def rows_of_ids(ids: Iterable[str]) -> Bool[np.ndarray, " rows"]:
        _, rows = find_rows([shard], list(ids))
        out = np.zeros(len(shard), bool)
        out[rows[rows >= 0]] = True
        return out

    table = shard.metadata
    if table is None:  # Ids can be asked for all the same
        pa = import_pyarrow()
        table = pa.table({"": pa.nulls(len(shard))})
    return where.mask(table, rows_of_ids)
