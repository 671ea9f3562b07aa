"""First stages of an index that are kept in Milvus (`first_stage.milvus`): rows that count, their
ids and metadata go there, and what Milvus finds becomes images.

A row's key there is made of its place in its shard, and of the shard's files that say what is sent:
vectors, ids and metadata. So equal keys are equal rows, whatever becomes of the index.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.first_stage.base import (
    BeyondLimits,
    Nearest,
    merge_nearest,
    no_neighbours,
    pad_nearest,
)
from edje_jax.first_stage.milvus import MilvusCollection, StaleCollection, Synced
from edje_jax.first_stage.milvus_vectors import VectorRows
from edje_jax.index.caption_columns import CODES
from edje_jax.index.column import Column
from edje_jax.index.places import Places
from edje_jax.index.selection import Selection
from edje_jax.index.shard import Shard
from edje_jax.index.shard_files import BadStore, has_file, name_of
from edje_jax.index.store import Store

SHARD_BITS, ROW_BITS = 39, 24
"""Bits of a key that stand for the shard and for the row."""
BLOCK = 1 << 13
"""Rows that are sent at once."""
MOST_IDS = 10_000
"""Most ids that a filter in Milvus may list."""
_IDS = ("id_hashes", "id_rows")
"""Kinds of a shard's files that tell the ids of its rows."""


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
        """Key of a shard -> its position, of those that have rows which count.

        Raises:
            BadStore: two shards have the same key.
        """
        out = {}
        for position, record in enumerate(self.store.manifest.shards):
            if not self.places.counts(position):
                continue
            if out.setdefault(key := self._key(record), position) != position:
                raise BadStore(
                    f"{self.store.files}: shards {out[key]} and {position} have the same content;"
                    " edje index compact may merge them"
                )
        return out

    def _key(self, record: dict[str, Any]) -> int:
        """Key of a shard, made of what is sent of its rows."""
        # An older version kept ids and numbers of captions in the rows alone.
        kinds = ["metadata", *(_IDS if has_file(record, "id_hashes") else ("rows",))]
        if self.of_captions:
            kinds.append("caption_starts")
        kinds = [self.column, *(kind for kind in kinds if has_file(record, kind))]
        names = [name_of(record, kind, self.store.files) for kind in kinds]
        digests = "".join(record["files"][name]["sha256"] for name in names)
        return int(hashlib.sha256(digests.encode()).hexdigest(), 16) >> (256 - SHARD_BITS)

    def stamp(self) -> dict[str, Any]:
        """State of the index that a collection has to be of."""
        gone = {
            str(record["number"]): file["sha256"][:16]
            for record in self.store.manifest.shards
            for name, file in record["files"].items()
            if name.startswith("gone-")
        }
        shards = sorted(f"{key:x}" for key in self.positions)
        metadata = list(self.store.manifest.metadata)
        return {
            "rows": len(self.places), "shards": shards, "gone": gone, "bits": self.bits,
            "metadata": metadata,
        }  # fmt: skip

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
                shard = self.store.shards[position]
                images = shard.images_of(rows[some]) if self.of_captions else rows[some]
                yield VectorRows(
                    (key << ROW_BITS) + rows[some],
                    [shard.row(image).id for image in images.tolist()],
                    self.vectors[numbers[some]],
                    _metadata(shard, images, names),
                )

    def numbers(self, keys: Int[np.ndarray, "q k"]) -> Int[np.ndarray, "q k"]:
        """Number of the image, or caption, of each key; -1 stays -1.

        Raises:
            StaleCollection: a key is of no row that counts in the index as it was opened.
        """
        out = np.full(keys.shape, -1, np.int64)
        there = keys >= 0
        shards, rows = keys[there] >> ROW_BITS, keys[there] & ((1 << ROW_BITS) - 1)
        known = np.array([(-1, -1), *sorted(self.positions.items())], np.int64)
        key, position = known[np.searchsorted(known[:, 0], shards, side="right") - 1].T
        if np.all(key == shards):
            out[there] = self.places.number(position, rows)
        if np.any(out[there] < 0):
            raise StaleCollection(
                f"{self.store.files}: Milvus has found rows that are not in the index as it was"
                " opened; open the index again"
            )
        return out


def _metadata(
    shard: Shard, images: Int[np.ndarray, " n"], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Values of some rows of a shard as local filters see them, by name."""
    table, absent = shard.metadata, [None] * len(images)
    columns = {} if table is None else dict(zip(table.column_names, table.columns, strict=True))
    return {
        name: columns[name].take(images).to_pylist() if name in columns else absent
        for name in names
    }


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
            StaleCollection: the collection has been brought up to a later state of the index.
            BeyondLimits: Milvus finds no k rows at once, or more ids are selected than it takes.
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
                raise BeyondLimits(
                    f"{len(selection.images):,} images are asked for by id; Milvus takes"
                    f" {MOST_IDS:,}; use a filter of metadata, or another first stage"
                )
            ids = [self._rows.store.row(image).id for image in selection.images.tolist()]
        found = self._collection.nearest(np.ascontiguousarray(queries), k, where, ids)
        # Equal similarities rank by the order of the index, not by that of keys.
        return pad_nearest(
            merge_nearest([Nearest(found.similarities, self._rows.numbers(found.rows))], k), k
        )


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
