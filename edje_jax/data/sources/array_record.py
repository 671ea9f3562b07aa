"""The `arrayrecord:` source: what `edje data pack` writes, the format for training on a cluster.

A shard `pictures-00000-of-00004.array_record` holds n + 1 records: n picture files as they are
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
from edje_jax.data.sources.captioned import Captioned, merged, packed
from edje_jax.data.sources.matching import matching_files, modified
from edje_jax.data.sources.packed import PackedStrings

FORMAT, VERSION = "edje_jax pictures", 1
OPEN = 256
"""Shards that a process keeps open: systems allow few files more."""


class ArrayRecord(Captioned):
    """Packed pictures, in the order of the files. Pictures of one id are one.

    Raises:
        ImportError: array-record is not installed.
        FileNotFoundError: the pattern fits no file, or a shard of a pack is missing.
        ValueError: a file is none of ours, or damaged, or an id stands in the packs of two sets.
    """

    def __init__(self, pattern: str):
        self.files = matching_files(pattern, ".array_record")
        self._modified = [modified(file) for file in self.files]
        tables = [read_table(file) for file in self.files]
        _refuse_gaps(self.files, tables)
        _refuse_two_sets(self.files, tables)
        pictures = [picture for table in tables for picture in table["pictures"]]
        rows, ids, captions = merged(
            (picture["id"] for picture in pictures), (picture["captions"] for picture in pictures)
        )
        counts = [len(table["pictures"]) for table in tables]
        self._file = np.repeat(np.arange(len(counts)), counts)[rows]
        self._record = np.concatenate([np.arange(count) for count in counts])[rows]
        super().__init__(pattern, PackedStrings(ids), *packed(captions))

    def encoded(self, index: int) -> bytes:
        """The picture's file as it was packed; `BadImage` if the shard is damaged."""
        number = self._file[self._checked(index)]
        file = self.files[number]
        try:
            return _opened(file, self._modified[number])[int(self._record[index])]
        except Exception as error:  # The library raises several kinds
            raise BadImage(f"{self.place(index)}: {file} cannot be read ({error})") from error


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
        if len(table["pictures"]) != count:
            raise ValueError("its table counts other pictures than it holds")
    except ImportError as error:
        raise ImportError(
            f"arrayrecord: needs more ({error}); pip install 'edje-jax[tfds]'"
        ) from error
    except Exception as error:  # The library raises several kinds
        raise ValueError(
            f"{file}: not a whole file of edje data pack ({error}); delete it and pack again."
            " Sets of TensorFlow Datasets are read by tfds:"
        ) from error
    return table


@lru_cache(maxsize=OPEN)
def _opened(file: str, modified: int) -> Any:
    """The records of a file, opened once in each process."""
    return _records(file)


def _records(file: str) -> Any:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource(file)


def _refuse_gaps(files: list[str], tables: list[dict[str, Any]]) -> None:
    """A pack that is still being written, or whose shards were not all copied, is no set."""
    packs = defaultdict(set)
    for file, table in zip(files, tables, strict=True):
        packs[os.path.dirname(file), table["set"], table["shards"]].add(table["shard"])
    for (folder, _, count), there in packs.items():
        if missing := sorted(set(range(count)) - there):
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {count} shards are not there, first number"
                f" {missing[0]}; run edje data pack again to finish, or copy them too"
            )


def _refuse_two_sets(files: list[str], tables: list[dict[str, Any]]) -> None:
    """Different sets may number their pictures alike, which makes no two of them one."""
    first: dict[str, tuple[str, str]] = {}
    if len({table["set"] for table in tables}) < 2:
        return
    for file, table in zip(files, tables, strict=True):
        for picture in table["pictures"]:
            name, other = first.setdefault(picture["id"], (table["set"], file))
            if name != table["set"]:
                raise ValueError(
                    f'{file}: id "{picture["id"]}" stands in {other} too, which was packed from'
                    " another set; join the packs with +, as in arrayrecord:A+arrayrecord:B"
                )
