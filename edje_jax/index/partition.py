"""Part of an index: every n-th of its shards, opened as a store of its own."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from edje_jax.index.manifest import Manifest
from edje_jax.index.places import Places
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store


@dataclass(frozen=True)
class ShardRows:
    """Rows of an index, as every part of it names them."""

    positions: Int[np.ndarray, "..."]
    """Positions in the index of the shards that they lie in; -1 where there is no row."""
    rows: Int[np.ndarray, "..."]
    """Rows in these shards."""


@dataclass(frozen=True)
class Partition:
    """Shards number, number + of, number + 2 * of ... of an index, by their positions in it.

    It opens what the manifest given names, which may have been replaced on disk: all parts of an
    index, and one that is opened anew, are of one state of it.
    """

    folder: Path
    manifest: Manifest
    number: int
    of: int

    def open(self) -> Store:
        """Store of these shards alone; its images count from 0.

        Its first stages are kept in `partitions/`, as they hold other rows than the index's own.

        Raises:
            BadStore: a file is missing, or an older version wrote the index.
        """
        if self.manifest.format < 3:
            raise BadStore(
                f"{self.folder}: written by an older version, and cannot be opened in parts; bring"
                f" it up to date with edje index compact {self.folder}"
            )
        own = replace(self.manifest, shards=self.manifest.shards[self.number :: self.of])
        return Store(self.folder, own, f"partitions/{self.number}-of-{self.of}/first-stage")

    def named(self, places: Places, numbers: Int[np.ndarray, "..."]) -> ShardRows:
        """Rows that are numbered so in the store of this part."""
        there = numbers >= 0
        positions, rows = np.full(numbers.shape, -1), np.full(numbers.shape, -1)
        own, rows[there] = places.locate(numbers[there])
        positions[there] = own * self.of + self.number
        return ShardRows(positions, rows)

    def numbered(self, places: Places, rows: ShardRows) -> Int[np.ndarray, " n"]:
        """Numbers of rows in the store of this part."""
        return places.number((rows.positions - self.number) // self.of, rows.rows)
