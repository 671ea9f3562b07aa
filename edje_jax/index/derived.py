"""Files of a shard that follow from its rows: where to find them, and metadata for filters."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from edje_jax.index.metadata import metadata_file, metadata_table
from edje_jax.index.row_lookup import look_up
from edje_jax.index.shard_files import read_rows, write_array
from edje_jax.system.files import atomic_path

log = logging.getLogger(__name__)


def write_derived(
    rows: Path, number: int, metadata: Sequence[str], named: Callable[[str], Path]
) -> list[Path]:
    """Write the files that follow from a shard's rows, and return their paths.

    Args:
        number: the shard's.
        metadata: names of the values that filters can ask for; a file of them is written if there
            are any.
        named: path of a file, given the name that it has in a shard that is new.

    Raises:
        BadStore: the rows are damaged.
        ModuleNotFoundError: metadata needs pyarrow, which is not installed.
    """
    written = []
    for kind, array in look_up(rows)._asdict().items():
        written.append(named(f"{kind}-{number:05d}.npy"))
        write_array(written[-1], array)
    if metadata:
        table, faults = metadata_table([row.metadata for row in read_rows(rows)], metadata)
        for fault in faults[:10]:
            log.warning("%s, line %d: %s", rows, fault.row + 1, fault.reason)
        written.append(named(f"metadata-{number:05d}.arrow"))
        with atomic_path(written[-1]) as temporary:
            temporary.write_bytes(metadata_file(table))
    return written
