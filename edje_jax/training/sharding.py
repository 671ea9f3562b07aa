"""Device mesh for a laptop and a pod alike: it says which device holds what.

The mesh has two axes. Rows of a batch are split over both; parameters and optimiser state are
split over `fsdp` alone and repeated over `data`, so that fsdp = 1 is plain data parallelism. XLA
inserts what has to be sent. One device is a mesh of one: the same code path.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from edje_jax.config.run import MeshConfig
from edje_jax.weights.mapping import aligned_float32, to_device

DATA, FSDP = "data", "fsdp"
ROWS = PartitionSpec((DATA, FSDP))
"""Partition of a batch: its rows over every device."""

RULES: tuple[tuple[str, str], ...] = (
    # Small, and wanted whole by every device at once.
    (r"(bias|scale|step|count)$", "whole"),
    # Every device chooses among all of it.
    (r"^queue/", "whole"),
    (r".*", "split"),
)
"""(regular expression on a parameter's path, what to do), the first match counts. "split" cuts
the largest axis that the number of devices divides; what has none stays whole."""

Tree = TypeVar("Tree")


class MeshError(ValueError):
    """The mesh that is asked for does not fit the devices, or the batch does not fit the mesh."""


@dataclass(frozen=True)
class Devices:
    """Device mesh, with methods that shard and replicate arrays."""

    mesh: Mesh

    @classmethod
    def of(
        cls, config: MeshConfig, batch_size: int, chunks: int = 1, among: Sequence[Any] = ()
    ) -> "Devices":
        """The mesh of a config over the devices of every process, for batches in so many chunks.

        `among` names other devices, such as those of a topology to compile for.

        Raises:
            MeshError: the axes do not fit the devices, or the batch cannot be cut evenly.
        """
        # A process reads rows that stand together: so must its devices.
        there = among or jax.devices()
        devices = sorted(there, key=lambda device: (device.process_index, device.id))
        data = config.data or len(devices) // config.fsdp
        used = data * config.fsdp
        # Leaving devices idle has to be asked for; a process cannot be left out.
        some = bool(config.data) and jax.process_count() == 1
        if used > len(devices) or (used != len(devices) and not some):
            asked = f"--mesh.data {config.data} " if config.data else ""
            raise MeshError(
                f"{asked}--mesh.fsdp {config.fsdp}: {len(devices)} devices are here, and data *"
                " fsdp must be their number (without --mesh.data it takes the rest)"
            )
        if batch_size % (used * chunks):
            times = f" {chunks} times (--accumulate, --loss.*-stride)" if chunks > 1 else ""
            raise MeshError(
                f"--data.batch-size {batch_size} cannot be cut evenly over {used} devices{times};"
                f" make it a multiple of {used * chunks}, or use fewer devices with --mesh.data"
            )
        grid = np.array(devices[:used]).reshape(data, config.fsdp)
        return cls(Mesh(grid, (DATA, FSDP)))

    @property
    def count(self) -> int:
        """Devices in use, of every process."""
        return self.mesh.size

    @property
    def local_devices(self) -> tuple[Any, ...]:
        """This process's accelerators in use, for what it computes by itself; () on a CPU, whose
        devices share its cores."""
        here, devices = jax.process_index(), self.mesh.devices.flat
        own = tuple(device for device in devices if device.process_index == here)
        return () if own[0].platform == "cpu" else own

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of arrays that every device holds."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def rows(self) -> NamedSharding:
        """Sharding of arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, ROWS)

    def sharding(self, path: Any, leaf: Any) -> NamedSharding:
        """Sharding of a leaf of the training state, or of a parameter."""
        name, parts = jax.tree_util.keystr(path, simple=True, separator="/"), self.mesh.shape[FSDP]
        action = next(action for pattern, action in RULES if re.search(pattern, name))
        shape = np.shape(leaf)
        cuttable = [axis for axis, size in enumerate(shape) if size % parts == 0 and size >= parts]
        if action == "whole" or parts == 1 or not cuttable:
            return self.replicated
        axis = max(cuttable, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, FSDP))

    def shardings(self, tree: PyTree) -> PyTree:
        """`sharding` of every leaf."""
        return jax.tree_util.tree_map_with_path(self.sharding, tree)

    def jit(self, function: Callable[..., Tree], **options: Any) -> Callable[..., Tree]:
        """`jax.jit` of a function that runs on the mesh.

        While it is traced the mesh is in use, as kernels that XLA cannot partition ask for
        (`models.attention_kernels`).
        """

        def on_mesh(*arguments: Any) -> Tree:
            with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
                return function(*arguments)

        # Profiles show it; a partial function has none of its own.
        on_mesh.__name__ = getattr(function, "func", function).__name__
        return jax.jit(on_mesh, **options)

    def init_sharded(self, function: Callable[[], Tree]) -> Tree:
        """Result of a function, computed on the devices that keep it: never whole on one."""
        return jax.jit(function, out_shardings=self.shardings(jax.eval_shape(function)))()

    def fetch(self, tree: PyTree[jax.Array]) -> PyTree[np.ndarray]:
        """The whole tree in every process's memory, leaf by leaf; every process takes part."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return jax.tree.map(partial(multihost_utils.process_allgather, tiled=True), tree)

    def on_one_device(self, tree: PyTree[jax.Array]) -> PyTree[jax.Array]:
        """Copy the tree to one device of this process, for what it computes by itself."""
        return tree if self.count == 1 else to_device(self.fetch(tree))

    def put(self, tree: PyTree[np.ndarray]) -> PyTree[jax.Array]:
        """Loaded parameters as float32 on the devices, each of which gets its part alone."""

        def one(path: Any, leaf: np.ndarray) -> jax.Array:
            parts: dict[str, np.ndarray] = {}  # Several devices may hold the same one

            def part(index: Any) -> np.ndarray:
                if str(index) not in parts:
                    parts[str(index)] = aligned_float32(leaf[index])
                return parts[str(index)]

            return jax.make_array_from_callback(leaf.shape, self.sharding(path, leaf), part)

        return jax.tree_util.tree_map_with_path(one, tree)

    def put_on_all(self, tree: Tree) -> Tree:
        """Arrays that every process has whole, on every device."""
        return jax.tree.map(
            lambda array: jax.make_array_from_process_local_data(self.replicated, array), tree
        )

    def shard_rows(self, tree: Tree) -> Tree:
        """Inside a jitted step: rows over the devices."""
        return jax.lax.with_sharding_constraint(tree, self.rows)

    def replicate(self, tree: Tree) -> Tree:
        """Inside a jitted step: everything to every device."""
        return jax.lax.with_sharding_constraint(tree, self.replicated)

    def to_chunks(self, tree: Tree, chunks: int) -> Tree:
        """Inside a jitted step: rows [b, ...] -> [chunks, b / chunks, ...].

        Every chunk takes its share of each device's rows, so that nothing is sent.
        """

        def one(leaf: jax.Array) -> jax.Array:
            size = len(leaf) // chunks
            grid = leaf.reshape(self.count, chunks, size // self.count, *leaf.shape[1:])
            return grid.swapaxes(0, 1).reshape(chunks, size, *leaf.shape[1:])

        return jax.lax.with_sharding_constraint(jax.tree.map(one, tree), self._chunks)

    def from_chunks(self, tree: Tree) -> Tree:
        """The way back from `to_chunks`."""

        def one(leaf: jax.Array) -> jax.Array:
            chunks, size = leaf.shape[:2]
            grid = leaf.reshape(chunks, self.count, size // self.count, *leaf.shape[2:])
            return grid.swapaxes(0, 1).reshape(chunks * size, *leaf.shape[2:])

        return self.shard_rows(jax.tree.map(one, tree))

    @property
    def _chunks(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(None, *ROWS))

    def batch(self, batch: Tree) -> Tree:
        """This process's rows -> the global batch, its rows over the devices."""
        return jax.tree.map(
            lambda rows: jax.make_array_from_process_local_data(self.rows, rows), batch
        )


def rows_of_this_process(array: jax.Array) -> np.ndarray:
    """The way back from `Devices.batch`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def bytes_per_device(tree: PyTree[jax.Array]) -> int:
    """Bytes of a tree that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
