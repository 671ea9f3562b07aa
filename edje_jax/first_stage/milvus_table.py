"""Collections of Milvus as tables of an index's rows, and what can be asked of them.

Fields are `edje_key` (the number of a row, for ever), `id`, `edje_vector`, and metadata under its
own names, which filters use. Two properties say what a collection holds: "edje.about" what its
rows are, from its beginning; "edje.stamp" of which state of the index they are, only while they
are all there and indexed.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from edje_jax.first_stage.milvus_address import MilvusAddress, told
from edje_jax.first_stage.milvus_vectors import VectorForm, VectorIndex, VectorRows

ABOUT, STAMP = "edje.about", "edje.stamp"
KEY, ID, VECTOR = "edje_key", "id", "edje_vector"
MOST_NEAREST = 16_384
"""Most rows that Milvus finds for a query, or lists at once."""
LONGEST_ID = 65_535
"""Bytes of the longest string that Milvus keeps."""
SEARCH_SECONDS = 60
POLL_SECONDS = 0.5
WHILE_WRITING = VectorIndex("FLAT")
"""Index under which rows come in: rows of an unindexed collection cannot be listed."""


@dataclass(frozen=True)
class TableAbout:
    """Content of a collection, from its beginning."""

    identity: str
    """Identity of the index: equal keys of it are equal rows."""
    form: VectorForm
    index: VectorIndex | None = None
    """Index that is built; None while rows come in."""

    def to_json(self) -> str:
        """Text that `from_json` takes."""
        return json.dumps({"format": 1, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "TableAbout":
        """Content by its text."""
        read = json.loads(text)
        index = read["index"] and VectorIndex(**read["index"])
        return cls(read["identity"], VectorForm(**read["form"]), index)


class MilvusTable:
    """A collection, which need not exist; errors are those of `milvus_address.told`."""

    def __init__(self, address: MilvusAddress, name: str, client: Any):
        self.address, self.name, self._client = address, name, client

    def __str__(self) -> str:
        return f"{self.address}: the collection {self.name}"

    def about(self) -> TableAbout | None:
        """Content of the collection; None where there is none.

        Raises:
            ValueError: something else has made a collection of that name.
        """
        properties = self._properties()
        if properties is None:
            return None
        if not properties.get(ABOUT):
            raise ValueError(f"{self} is of something else; name another after a # in the address")
        return TableAbout.from_json(properties[ABOUT])

    def stamp(self) -> dict[str, Any] | None:
        """Stamp of the rows; None where some may be missing."""
        text = (self._properties() or {}).get(STAMP)
        return json.loads(text) if text else None

    def set_stamp(self, stamp: dict[str, Any] | None) -> None:
        """Write a stamp, or take it away."""
        self._set(STAMP, json.dumps(stamp) if stamp is not None else "")

    def create(self, about: TableAbout) -> None:
        """Make a collection without rows."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field(KEY, DataType.INT64, is_primary=True)
        schema.add_field(ID, DataType.VARCHAR, max_length=LONGEST_ID)
        schema.add_field(VECTOR, DataType[about.form.type_name], dim=about.form.width)
        properties = {ABOUT: about.to_json()}
        with told(self.address):
            self._client.create_collection(self.name, schema=schema, properties=properties)

    def drop(self) -> None:
        """Delete the collection."""
        with told(self.address):
            self._client.drop_collection(self.name)

    def load(self, about: TableAbout) -> None:
        """Bring the collection into the engine's memory, where rows are found and listed."""
        with told(self.address):
            if not self._client.list_indexes(self.name):
                self._add_index(WHILE_WRITING, about.form)
            self._client.load_collection(self.name)

    def count(self) -> int:
        """Number of rows."""
        with told(self.address):
            answer = self._client.query(
                self.name, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
        return int(answer[0]["count(*)"])

    def keys(self, above: int, to: int | None) -> Iterator[Int64[np.ndarray, " n"]]:
        """Pages of the keys above one and up to another, if given."""
        limits = f"{KEY} > {above}" + ("" if to is None else f" and {KEY} <= {to}")
        with told(self.address):
            pages = self._client.query_iterator(
                self.name,
                filter=limits,
                output_fields=[KEY],
                batch_size=MOST_NEAREST,
                consistency_level="Strong",
            )
            while page := pages.next():
                yield np.array([row[KEY] for row in page], np.int64)
            pages.close()

    def write(self, rows: VectorRows, form: VectorForm) -> int:
        """Write rows, in the place of those of the same keys; returns their number."""
        names = zip(rows.keys.tolist(), rows.ids, form.encoded(rows.vectors), strict=True)
        entities = [{KEY: key, ID: id, VECTOR: vector} for key, id, vector in names]
        for name, values in (rows.metadata or {}).items():
            for entity, value in zip(entities, values, strict=True):
                if value is not None:
                    entity[name] = value
        if entities:
            with told(self.address):
                self._client.upsert(self.name, entities)
        return len(entities)

    def delete(self, keys: Int64[np.ndarray, " n"]) -> int:
        """Delete the rows of some keys; returns their number."""
        if len(keys):
            with told(self.address):
                self._client.delete(self.name, ids=keys.tolist())
        return len(keys)

    def flush(self) -> None:
        """Bring to disk all that was written."""
        with told(self.address):
            self._client.flush(self.name)

    def build_index(self, about: TableAbout, index: VectorIndex) -> TableAbout:
        """Put an index in the place of that which is there; returns the new content."""
        self._set(ABOUT, replace(about, index=None).to_json())
        with told(self.address):
            self._client.release_collection(self.name)
            for name in self._client.list_indexes(self.name):
                self._client.drop_index(self.name, index_name=name)
            self._add_index(index, about.form)
        about = replace(about, index=index)
        self._set(ABOUT, about.to_json())
        return about

    def wait_for_index(self) -> None:
        """Wait until every row is indexed."""
        with told(self.address):
            while self._client.describe_index(self.name, VECTOR).get("pending_index_rows"):
                time.sleep(POLL_SECONDS)

    def search(self, about: TableAbout, queries: np.ndarray, k: int, limits: str) -> Any:
        """k nearest rows of each query, of those that an expression holds for, in Milvus' order
        and with its numbers (`VectorForm.similarities`)."""
        index = about.index or WHILE_WRITING
        # Lists anywhere, and a graph of Milvus Lite, are followed without regard to the limits:
        # only those who follow all of them find the few rows that are left.
        is_blind = limits and (self.address.is_file or index.has_lists)
        settings = index.search_settings(k, everything=self.count() if is_blind else None)
        with told(self.address):
            return self._client.search(
                self.name,
                data=about.form.encoded(queries),
                anns_field=VECTOR,
                limit=k,
                filter=limits,
                search_params={"metric_type": about.form.metric, "params": settings},
                timeout=None if self.address.is_file else SEARCH_SECONDS,
            )

    def _add_index(self, index: VectorIndex, form: VectorForm) -> None:
        settings = self._client.prepare_index_params()
        settings.add_index(VECTOR, index_name=VECTOR, **index.build_settings(form))
        self._client.create_index(self.name, settings)

    def _properties(self) -> dict[str, str] | None:
        with told(self.address):
            if not self._client.has_collection(self.name):
                return None
            return self._client.describe_collection(self.name)["properties"]

    def _set(self, name: str, value: str) -> None:
        with told(self.address):
            self._client.alter_collection_properties(self.name, {name: value})
