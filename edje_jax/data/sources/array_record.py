"""The `arrayrecord:` source: what `edje data pack` writes, the format for training on a cluster.

A shard `pictures-00000-of-00004.array_record` holds n + 1 records: n image files as they are
(JPEG, PNG, ...), then a table of contents in UTF-8 JSON:

    {"format": "edje_jax pictures", "version": 1, "shard": 0, "shards": 4, "set": "6f1e...",
     "pictures": [{"id": "coco_1", "captions": ["two dogs", ...]}, ...],
     "rejected": [{"id": "coco_2", "reason": "..."}, ...]}

The table comes last, so that a shard with one is whole. Opening a set reads the tables alone.
"""

import json
import os
from collections import defaultdict
from functools import lru_cache
from typing import Any

import numpy as np

from edje_jax.data.images import BadImage
from edje_jax.data.sources.captioned import Captioned, merge_records, pack_captions
from edje_jax.data.sources.matching import matching_files, modified
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.texts import (
    in_a_line,
    json_kind,
    listed,
    refuse_if_none,
    text_fault,
    usable,
)
from edje_jax.data.stamps import file_stamp
from edje_jax.system.files import most_open_files
from edje_jax.types import BadRecord

FORMAT, VERSION = "edje_jax pictures", 1
OPEN = min(256, most_open_files() // 4)
"""Shards that a process keeps open."""


class ArrayRecord(Captioned):
    """Packed images, in the order of the files. Images of one id are one.

    Raises:
        ImportError: array-record is not installed.
        FileNotFoundError: the pattern fits no file, or a shard of a pack is missing.
        ValueError: a file is none of ours, or damaged, or an id stands in the packs of two sets.
    """

    def __init__(self, pattern: str):
        self.files = matching_files(pattern, ".array_record")
        self._modified = [modified(file) for file in self.files]
        self._stamps = [file_stamp(file) for file in self.files]
        tables = [read_table(file) for file in self.files]
        _refuse_gaps(self.files, tables)
        ids, captions, places, faults, bad = [], [], [], {}, []
        for number, (file, table) in enumerate(zip(self.files, tables, strict=True)):
            for record, image in enumerate(table["pictures"]):
                where = f"{file}: image {record}"
                try:
                    image_id, good, fault = _entry(image)
                except ValueError as error:
                    bad.append(BadRecord(where, str(error)))
                    continue
                if fault:
                    faults[len(ids)] = f"{where}: {fault}"
                ids.append(image_id)
                captions.append(good)
                places.append((number, record))
        refuse_if_none(pattern, len(ids), bad)
        _refuse_two_sets(self.files, tables, ids, places)
        found = merge_records(ids, captions, faults)
        self._places = np.array(places, np.int64).reshape(-1, 2)[found.rows]
        ids, texts = PackedStrings(found.ids), pack_captions(found.captions)
        super().__init__(pattern, ids, *texts, found.faults, bad, found.joined)

    def stamp(self, index: int) -> str:
        """The shard's size and modification time, and the record's number; "" of a remote one."""
        number, record = self._places[self._checked(index)].tolist()
        return self._stamps[number] and f"{self._stamps[number]}-{record}"

    def encoded(self, index: int) -> bytes:
        """The image's file as it was packed; `BadImage` if the shard is damaged."""
        number, record = self._places[self._checked(index)].tolist()
        file = self.files[number]
        try:
            return _opened(file, self._modified[number])[record]
        except Exception as error:  # The library raises several kinds
            raise BadImage(
                f"{self.describe(index)}: {file} cannot be read ({in_a_line(error)})"
            ) from error


def read_table(file: str) -> dict[str, Any]:
    """A shard's table of contents.

    Raises:
        ValueError: the file is none of ours, or damaged.
    """
    try:
        with _records(file) as records:
            count = len(records) - 1
            table = json.loads(records[count])
        if table["format"] != FORMAT or table["version"] > VERSION:
            raise ValueError(f"format {table['format']!r}, version {table['version']}")
        if not isinstance(table["pictures"], list) or len(table["pictures"]) != count:
            raise ValueError("its table counts other images than it holds")
        for name, kind in (("shard", int), ("shards", int), ("set", str), ("rejected", list)):
            if not isinstance(table[name], kind):
                raise ValueError(f'"{name}" of its table is no {kind.__name__}')
    except ImportError as error:
        raise ImportError(
            f"arrayrecord: needs more ({error}); pip install 'edje-jax[tfds]'"
        ) from error
    except Exception as error:  # The library raises several kinds
        raise ValueError(
            f"{file}: not a whole file of edje data pack ({in_a_line(error)}); delete it and pack"
            " again. Sets of TensorFlow Datasets are read by tfds:"
        ) from error
    return table


def _entry(image: Any) -> tuple[str, list[str], str]:
    """(id, captions that can be used, what is wrong with the others) of one in a table.

    Raises:
        ValueError: it has no id.
    """
    if not isinstance(image, dict):
        raise ValueError(f"a {json_kind(image)} in the table, not an object; pack the set again")
    if fault := text_fault(image.get("id")):
        raise ValueError(f'its "id" {fault}; pack the set again')
    return image["id"], *usable(listed(image.get("captions")))


@lru_cache(maxsize=OPEN)
def _opened(file: str, modified: int) -> Any:
    """The records of a file, opened once in each process."""
    return _records(file)


def _records(file: str) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(file)


def _refuse_gaps(files: list[str], tables: list[dict[str, Any]]) -> None:
    """Refuse a pack that is still being written, or whose shards were not all copied."""
    packs = defaultdict(set)
    for file, table in zip(files, tables, strict=True):
        packs[os.path.dirname(file), table["set"], table["shards"]].add(table["shard"])
    for (folder, _, count), there in packs.items():
        if missing := count - sum(0 <= shard < count for shard in there):
            first = next(shard for shard in range(count) if shard not in there)
            raise FileNotFoundError(
                f"{folder}: {missing} of {count} shards are not there, first number"
                f" {first}; run edje data pack again to finish, or copy them too"
            )


def _refuse_two_sets(
    files: list[str],
    tables: list[dict[str, Any]],
    ids: list[str],
    places: list[tuple[int, int]],
) -> None:
    """Refuse shards of different sets, which may number their images alike."""
    first: dict[str, int] = {}
    if len({table["set"] for table in tables}) < 2:
        return
    for image_id, (number, _) in zip(ids, places, strict=True):
        other = first.setdefault(image_id, number)
        if tables[other]["set"] != tables[number]["set"]:
            raise ValueError(
                f'{files[number]}: id "{image_id}" stands in {files[other]} too, which was packed'
                " from another set; join the packs with +, as in arrayrecord:A+arrayrecord:B"
            )
