"""Lookups of a shard: where the lines of its rows lie, and which row has an id.

    row_starts-00000.npy      uint64 [rows + 1]: byte at which each line of the rows file begins
    caption_starts-00000.npy  uint32 [rows + 1]: number of captions before each row
    id_hashes-00000.npy       uint64 [rows], rising: 64 bits of the ids' BLAKE2b
    id_rows-00000.npy         uint32 [rows]: row of each hash

A shard of an older format has none of these files; they are made in memory when it is opened.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32, UInt64

from edje_jax.index.shard_files import BadStore


class RowLookup(NamedTuple):
    """Arrays by which single rows of a shard are found; the fields' names are their files'."""

    row_starts: UInt64[np.ndarray, " rows_and_1"]
    caption_starts: UInt32[np.ndarray, " rows_and_1"]
    id_hashes: UInt64[np.ndarray, " rows"]
    id_rows: UInt32[np.ndarray, " rows"]


def look_up(path: Path) -> RowLookup:
    """Lookup of a file of rows, which is read once.

    Raises:
        BadStore: the file is damaged.
    """
    row_starts, captions, ids = [0], [0], []
    try:
        with path.open("rb") as file:
            for line in file:
                words = json.loads(line)
                ids.append(words["id"])
                captions.append(len(words["captions"]))
                row_starts.append(row_starts[-1] + len(line))
        hashes = hash_ids(ids)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadStore(f"{path}: damaged ({error}); build the index again") from error
    order = np.argsort(hashes, kind="stable")
    return RowLookup(
        np.array(row_starts, np.uint64),
        np.cumsum(captions, dtype=np.uint32),
        hashes[order],
        order.astype(np.uint32),
    )


def hash_ids(ids: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """64 bits of the BLAKE2b digest of each id."""
    digests = (
        hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest() for id in ids
    )
    return np.frombuffer(b"".join(digests), np.dtype("<u8"))
