"""First stages of an index that are kept in Milvus (`first_stage.milvus`): rows that count, their
ids and metadata go there, and what Milvus finds becomes images.

A row's key there is made of its shard's column file and of its place in it, so that equal keys are
equal rows, whatever becomes of the index.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edje_jax.first_stage.base import Nearest, best, fill_up, no_neighbours
from edje_jax.first_stage.milvus import MilvusCollection, Synced
from edje_jax.first_stage.milvus_vectors import VectorRows
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.places import Places
from edje_jax.index.selection import Selection
from edje_jax.index.shard_files import BadStore, name_of
from edje_jax.index.store import Store

SHARD_BITS, ROW_BITS = 39, 24
"""Bits of a key that stand for the shard and for the row."""
BLOCK = 1 << 13
"""Rows that are sent at once."""
MOST_IDS = 10_000
"""Most ids that a filter in Milvus may list."""


@dataclass(frozen=True)
class MilvusRows:
    """Rows of a column of an index by the keys that they have in Milvus."""

    store: Store
    column: str
    bits: int | None
    """Length of codes; None for embeddings."""

    @property
    def of_captions(self) -> bool:
        """Whether the column has a row for each caption."""
        return self.store.manifest.column_types[self.column].per == "caption"

    @property
    def places(self) -> Places:
        """Numbers of the rows that count."""
        return self.store.caption_places if self.of_captions else self.store.places

    @cached_property
    def vectors(self) -> Column:
        """Embeddings, or codes of the length that is compared."""
        column = self.store.column(self.column)
        return column.beginning(self.bits // 8) if self.bits else column

    @cached_property
    def positions(self) -> dict[int, int]:
        """Key of a shard -> its position.

        Raises:
            BadStore: two shards have the same key.
        """
        out = {}
        for position, record in enumerate(self.store.manifest.shards):
            name = name_of(record, self.column, self.store.files)
            key = int(record["files"][name]["sha256"], 16) >> (256 - SHARD_BITS)
            if out.setdefault(key, position) != position:
                raise BadStore(
                    f"{self.store.files}: shards {out[key]} and {position} have the same content;"
                    " edje index compact may merge them"
                )
        return out

    def stamp(self) -> dict[str, Any]:
        """State of the index that a collection has to be of."""
        gone = {
            str(record["number"]): file["sha256"][:16]
            for record in self.store.manifest.shards
            for name, file in record["files"].items()
            if name.startswith("gone-")
        }
        shards = sorted(f"{key:x}" for key in self.positions)
        return {"rows": len(self.places), "shards": shards, "gone": gone, "bits": self.bits}

    def blocks(self) -> Iterator[VectorRows]:
        """All rows that count, by rising key."""
        names = self.store.manifest.metadata
        yield VectorRows(np.empty(0, np.int64), [], self.vectors[:0], {name: [] for name in names})
        for key, position in sorted(self.positions.items()):
            rows = np.arange(self.places.sizes[position])
            numbers = self.places.number(np.full(len(rows), position), rows)
            rows, numbers = rows[numbers >= 0], numbers[numbers >= 0]
            for start in range(0, len(rows), BLOCK):
                some = slice(start, start + BLOCK)
                images = [self._image(position, row) for row in rows[some].tolist()]
                metadata = {name: [one.metadata.get(name) for one in images] for name in names}
                yield VectorRows(
                    (key << ROW_BITS) + rows[some],
                    [one.id for one in images],
                    self.vectors[numbers[some]],
                    metadata,
                )

    def _image(self, position: int, row: int) -> Any:
        shard = self.store.shards[position]
        return shard.row(shard.caption(row)[0] if self.of_captions else row)

    def numbers(self, keys: np.ndarray) -> np.ndarray:
        """Number of the image, or caption, of each key; -1 stays -1."""
        out = np.full(keys.shape, -1, np.int64)
        there = keys >= 0
        known = np.array(sorted(self.positions.items()), np.int64).reshape(-1, 2)
        at = known[np.searchsorted(known[:, 0], keys[there] >> ROW_BITS), 1]
        out[there] = self.places.number(at, keys[there] & ((1 << ROW_BITS) - 1))
        return out


class InMilvus:
    """First stage over an index that Milvus searches."""

    def __init__(self, rows: MilvusRows, collection: MilvusCollection):
        self._rows, self._collection = rows, collection

    def __len__(self) -> int:
        """Number of images, or captions."""
        return len(self._rows.places)

    def nearest(self, queries: np.ndarray, k: int, selection: Selection | None = None) -> Nearest:
        """The k nearest of each query, among the selected ones if some are; row -1 at the end where
        Milvus has found fewer.

        Raises:
            ValueError: Milvus finds no k rows at once, or more ids are selected than it takes.
            OSError, RuntimeError: Milvus does not answer, or refuses.
        """
        k = min(k, len(self) if selection is None else len(selection.numbers))
        if not k or not len(queries):
            return no_neighbours(len(queries), k)
        where, ids = None, None
        if selection is not None and selection.where is not None:
            where = selection.where.to_milvus()
        elif selection is not None:
            if len(selection.images) > MOST_IDS:
                raise ValueError(
                    f"{len(selection.images):,} images are asked for by id; Milvus takes"
                    f" {MOST_IDS:,}; use a filter of metadata, or another first stage"
                )
            ids = [self._rows.store.row(image).id for image in selection.images.tolist()]
        found = self._collection.nearest(np.ascontiguousarray(queries), k, where, ids)
        # Equal similarities rank by the order of the index, not by that of keys.
        return fill_up(best([Nearest(found.similarities, self._rows.numbers(found.rows))], k), k)


def open_in_milvus(store: Store, uri: str, column: str, bits: int | None) -> InMilvus:
    """First stage over a column of embeddings, or over the codes that go with it.

    Raises:
        StaleCollection: Milvus holds another state of the index, or none.
        ModuleNotFoundError, OSError, ValueError: as for `MilvusCollection.open`.
    """
    rows, collection = _open(store, uri, column, bits)
    try:
        collection.check(rows.stamp())
    except BaseException:
        collection.close()
        raise
    return InMilvus(rows, collection)


def sync_to_milvus(store: Store, uri: str, column: str, bits: int | None) -> Synced:
    """Bring what Milvus holds of a column up to the index; what was killed goes on.

    Raises:
        ModuleNotFoundError, OSError, RuntimeError, ValueError: as for `MilvusCollection`.
    """
    rows, collection = _open(store, uri, column, bits)
    with collection:
        return collection.sync(rows.blocks(), rows.stamp())


def _open(
    store: Store, uri: str, column: str, bits: int | None
) -> tuple[MilvusRows, MilvusCollection]:
    rows = MilvusRows(store, CODES[column] if bits else column, bits)
    identity = store.manifest.identified().id or "empty"
    name = f"{rows.column}_{bits}" if bits else rows.column
    return rows, MilvusCollection.open(uri, identity, name)
