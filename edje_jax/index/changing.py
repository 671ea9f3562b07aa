"""Changes of an index, one after the other: builds, removals and compactions share its manifest."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edje_jax.index.files import IndexFiles
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard_files import BadStore, kind_of
from edje_jax.system.files import lock_file


@contextmanager
def changing(files: IndexFiles) -> Iterator[None]:
    """Hold an index: another process of this machine, or one that sees the folder, waits until it
    may change it. Machines that build to one URL do not see each other here."""
    files.folder.mkdir(parents=True, exist_ok=True)
    with lock_file(files.folder, wait=True):
        yield


def renewed(files: IndexFiles, before: Manifest) -> Manifest:
    """Manifest as it is now, for one that was read before; images may have been removed since.

    Raises:
        BadStore: shards are others now.
    """
    now = Manifest.read(files) if files.exists("manifest.json") else before
    if not has_same_shards(now, before):
        raise BadStore(
            f"{files}: another process has changed the index meanwhile; run the same again"
        )
    return now


def has_same_shards(now: Manifest, before: Manifest) -> bool:
    """Whether two manifests name the same shards; other rows of them may count."""
    return [_content(one) for one in now.shards] == [_content(one) for one in before.shards]


def _content(record: dict[str, Any]) -> dict[str, Any]:
    return {name: file for name, file in record["files"].items() if kind_of(name) != "gone"}
