"""A column of an index in Milvus: from a file on a laptop to a cluster, by the same calls.

with MilvusCollection.open("milvus:photos.db", identity, "embeddings") as collection:
    collection.sync(rows, stamp)
    collection.nearest(queries, k=100, where="year >= 2010")
"""

import json
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from edje_jax.first_stage.base import BeyondLimits, Nearest
from edje_jax.first_stage.milvus_address import MilvusAddress, connect, disconnect
from edje_jax.first_stage.milvus_table import (
    ID,
    KEY,
    LONGEST_ID,
    MOST_NEAREST,
    VECTOR,
    MilvusTable,
    TableAbout,
)
from edje_jax.first_stage.milvus_vectors import (
    KINDS,
    IndexKind,
    VectorForm,
    VectorIndex,
    VectorRows,
    default_kind,
)

MOST_FOUND = 1 << 20
"""Rows that are asked for at once, for all queries together."""


class StaleCollection(ValueError):
    """A collection is not of the index as it is now; the message names the remedy."""


class Synced(NamedTuple):
    """Numbers of rows that `sync` found there, wrote and deleted."""

    kept: int
    added: int
    deleted: int


class MilvusCollection:
    """Rows of a column of an index in Milvus."""

    def __init__(self, address: MilvusAddress, identity: str, column: str, client: Any):
        self._address, self._identity, self._client = address, identity, client
        self._table = MilvusTable(address, address.collection(identity, column), client)
        self._loaded: TableAbout | None = None

    @classmethod
    def open(cls, uri: str, identity: str, column: str) -> "MilvusCollection":
        """Collection of an index's column, which need not exist yet.

        `uri` is as `milvus_address` describes. `identity` is a text of the index such that equal
        keys with it are equal rows; its first 16 characters name the collection, with the column.

        Raises:
            ModuleNotFoundError: pymilvus or milvus-lite is not installed.
            OSError: no server answers, or the file cannot be opened, or another process has it.
            ValueError: `uri` is no address.
        """
        address = MilvusAddress.parse(uri)
        return cls(address, identity, column, connect(address))

    @property
    def name(self) -> str:
        """Name of the collection."""
        return self._table.name

    def close(self) -> None:
        """End the connection, and give a file free for other processes."""
        disconnect(self._address, self._client)

    def __enter__(self) -> "MilvusCollection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of rows that are there."""
        if self._table.about() is None:
            return 0
        self._load()
        return self._table.count()

    def stamp(self) -> dict[str, Any] | None:
        """Stamp of the state of the index that the collection holds; None while it is unfinished,
        or where there is none."""
        return self._table.stamp()

    def check(self, stamp: dict[str, Any]) -> None:
        """Check that the collection holds the index in the state that a stamp tells.

        Raises:
            StaleCollection: it holds another, or is unfinished.
            ValueError: something else has made a collection of that name.
        """
        about, held = self._table.about(), self._table.stamp()
        if about is None:
            difference = "there is none"
        elif about.identity != self._identity:
            difference = "it holds another index"
        elif held is None:
            difference = "it is unfinished"
        elif changes := _changes(held, stamp):
            difference = f"it holds another state ({changes})"
        else:
            return
        raise StaleCollection(
            f"{self._table} is not of the index as it is now: {difference}; bring it up to date"
            f" with edje index first-stage INDEX {self._address}"
        )

    def drop(self) -> None:
        """Delete the collection, if there is one.

        Raises:
            ValueError: something else has made it.
        """
        self._loaded = None
        if self._table.about():
            self._table.drop()

    def sync(
        self, rows: Iterable[VectorRows], stamp: dict[str, Any], kind: IndexKind | None = None
    ) -> Synced:
        """Make the collection hold these rows and no others, and then the stamp.

        Rows whose keys are there are passed over, so that it goes on where it was killed. `rows`
        are all rows of the index, in blocks of any size, by rising key; at least one block, of
        no rows if there are none. `kind` is the vectors' index (default: that of the address, or
        `default_kind`).

        Raises:
            ValueError: keys do not rise, vectors are of another width than those that are there,
                the collection is of another index, a name or value is none that Milvus takes, or
                `kind` compares rows of another kind.
            OSError, RuntimeError: the Milvus does not answer, or refuses.
        """
        blocks = iter(rows)
        if (first := next(blocks, None)) is None:
            raise ValueError("no block of rows: give one of no rows for an empty index")
        form = VectorForm.of(first.vectors, has_binary=not self._address.is_file)
        kind = kind or self._address.kind or default_kind(form.reads, self._address.is_file)
        if kind not in KINDS[form.reads]:
            raise ValueError(
                f"{kind} compares no {form.reads}; these do: {', '.join(KINDS[form.reads])}"
            )
        about = self._begin(form)
        synced = self._write(chain([first], blocks), form)
        self._table.flush()
        size = synced.kept + synced.added
        if not about.index or about.index.kind != kind or not about.index.suits(size):
            about = self._table.build_index(about, VectorIndex.over(kind, size))
        self._table.wait_for_index()
        self._load()
        if (there := self._table.count()) != size:
            raise RuntimeError(
                f"{self._table} has {there} rows instead of {size}; is another process writing it?"
                " Run the same again"
            )
        self._table.set_stamp(stamp)
        return synced

    def nearest(
        self,
        queries: Float32[np.ndarray, "q e"] | UInt8[np.ndarray, "q bytes"],
        k: int,
        where: str | None = None,
        ids: list[str] | None = None,
    ) -> Nearest:
        """Keys of the k nearest rows of each query, and their similarities; key -1 and similarity
        -inf at the end where there are fewer.

        Only rows that the Milvus expression `where` holds for are found, and that have one of
        `ids`. Equal similarities rank by lower key.

        Raises:
            BeyondLimits: Milvus finds no k rows at once.
            ValueError: queries do not fit, or `where` makes no sense.
            OSError, RuntimeError: the Milvus does not answer, or refuses.
        """
        if k > MOST_NEAREST:
            raise BeyondLimits(
                f"k {k:,}: Milvus finds at most {MOST_NEAREST:,} rows of a query; ask for fewer"
                " candidates, or take another first stage"
            )
        about = self._loaded or self._load()
        asked = VectorForm.of(queries, about.form.is_binary)
        if asked != about.form:
            raise ValueError(f"{self._table} holds {about.form}, compared with {asked}")
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        keys = np.full((len(queries), k), -1, np.int64)
        if not k or (ids is not None and not ids):
            return Nearest(similarities, keys)
        limits = [f"({where})"] if where else []
        limits += [f"{ID} in [{', '.join(map(_literal, ids))}]"] if ids is not None else []
        together = max(1, MOST_FOUND // k)
        for start in range(0, len(queries), together):
            some = queries[start : start + together]
            found = self._table.search(about, some, k, " and ".join(limits))
            for query, hits in enumerate(found, start):
                values = about.form.similarities(np.asarray(hits.distances, np.float64))
                own = np.asarray(hits.ids, np.int64)
                order = np.lexsort((own, -values))
                similarities[query, : len(own)], keys[query, : len(own)] = values[order], own[order]
        return Nearest(similarities, keys)

    def _load(self) -> TableAbout:
        """Content of the collection, once the engine has it in memory."""
        about = self._table.about()
        if about is None:
            raise FileNotFoundError(f"{self._table} is not there")
        self._table.load(about)
        self._loaded = about
        return about

    def _begin(self, form: VectorForm) -> TableAbout:
        """Content of a collection into which rows of a form can be written."""
        about = self._table.about()
        if about is None:
            self._table.create(TableAbout(self._identity, form))
        elif about.identity != self._identity:
            raise ValueError(
                f"{self._table} holds another index; name another after a # in the address, or"
                " drop it"
            )
        elif about.form != form:
            raise ValueError(f"{self._table} holds {about.form}, not {form}")
        self._table.set_stamp(None)
        return self._load()

    def _write(self, blocks: Iterable[VectorRows], form: VectorForm) -> Synced:
        """Write the rows whose keys are not there, and delete the other keys that are there."""
        kept, added, deleted, last = 0, 0, 0, -1
        is_new = not self._table.count()
        for rows in chain.from_iterable(block.parts(form.sent_rows) for block in blocks):
            _check_rows(rows, form, last)
            there = np.zeros(len(rows.keys), bool)
            for page in () if is_new else self._table.keys(last, int(rows.keys[-1])):
                there |= np.isin(rows.keys, page)
                deleted += self._table.delete(np.setdiff1d(page, rows.keys))
            added += self._table.write(rows.take(~there), form)
            kept, last = kept + int(there.sum()), int(rows.keys[-1])
        for page in () if is_new else self._table.keys(last, None):
            deleted += self._table.delete(page)
        return Synced(kept, added, deleted)


def _check_rows(rows: VectorRows, form: VectorForm, last: int) -> None:
    """Check that rows can follow those before, whose last key is `last`."""
    if (found := VectorForm.of(rows.vectors, form.is_binary)) != form:
        raise ValueError(f"rows of {form} go on as {found}")
    if np.any(np.diff(rows.keys, prepend=last) <= 0):
        raise ValueError(f"keys have to rise from 0, and do not after {last}")
    if taken := {KEY, ID, VECTOR} & set(rows.metadata or {}):
        raise ValueError(f"metadata cannot be called {', '.join(sorted(taken))} in Milvus")
    for id in rows.ids:
        if len(id) > LONGEST_ID // 4 and len(id.encode()) > LONGEST_ID:
            raise ValueError(f"{id[:40]}...: Milvus keeps ids of at most {LONGEST_ID} bytes")


def _changes(held: dict[str, Any], stamp: dict[str, Any]) -> str:
    """Differences of two stamps, in words; "" where they are equal."""
    return ", ".join(
        f"{key} {_short(held.get(key))}, now {_short(stamp.get(key))}"
        for key in {**held, **stamp}
        if held.get(key) != stamp.get(key)
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _literal(text: str) -> str:
    """String in a Milvus expression."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return f'"{text.translate(str.maketrans(escapes))}"'
