"""Writing anew of what changed in a shard without its images: captions, paths and stamps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.derived import write_derived
from edje_jax.index.files import IndexFiles
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard_files import (
    BadStore,
    ImageRecord,
    file_entry,
    has_file,
    kind_of,
    name_of,
    next_name,
    read_rows,
    row_line,
    write_array,
)
from edje_jax.system.files import atomic_path

Embed = Callable[[list[str]], Mapping[str, np.ndarray]]
"""Function from captions to the columns that have a row for each of them, as a shard has them."""


def rewrite_words(
    index: IndexFiles,
    manifest: Manifest,
    record: dict[str, Any],
    rows: Sequence[ImageRecord],
    embed: Embed,
) -> dict[str, Any]:
    """Write a shard's rows, and its captions where these differ, under new names.

    Args:
        rows: as many as the shard has; what differs is captions, paths, stamps, digests, metadata.
        embed: computes the columns of captions that the shard does not have.

    Returns:
        The shard's new record; the files count once a manifest holds it.

    Raises:
        BadStore: captions differ, and the shard has a column of them that `embed` does not compute.
    """
    files, written = dict(record["files"]), []

    def renewed(name: str) -> Path:
        """Path of a new file in the place of the one that the shard has, if it has one."""
        if has_file(record, kind := kind_of(name)):
            name = name_of(record, kind, index)
            del files[name]
            name = next_name(Path(name)).name
        written.append(index.folder / name)
        return written[-1]

    before = read_rows(index.path(record, "rows"))
    previous = [text for row in before for text in row.captions]
    texts = [text for row in rows for text in row.captions]
    path = renewed(name_of(record, "rows", index))
    _write_rows(path, rows)
    write_derived(path, record["number"], manifest.metadata, renewed)
    if texts != previous:
        known = set(previous)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        made = embed(unknown)
        for name, path in _caption_files(index, manifest, record, made).items():
            rows_before = np.load(path, allow_pickle=False)
            of_text = dict(zip(previous, rows_before, strict=True))
            of_text |= dict(zip(unknown, made[name], strict=True))
            array = np.array([of_text[text] for text in texts], rows_before.dtype)
            write_array(
                renewed(name_of(record, name, index)), array.reshape(-1, *rows_before.shape[1:])
            )
    entries = {path.name: file_entry(path) for path in written}
    index.publish(entries)
    index.release(entries)
    files |= entries
    return record | {"captions": len(texts), "files": files}


def _caption_files(
    index: IndexFiles, manifest: Manifest, record: dict[str, Any], made: Collection[str]
) -> dict[str, Path]:
    """Paths of a shard's columns with a row for each caption.

    Raises:
        BadStore: one is not among those that can be made.
    """
    kept = {
        name: index.path(record, name)
        for name, type in manifest.column_types.items()
        if type.per == "caption" and has_file(record, name)
    }
    if more := kept.keys() - set(made):
        raise BadStore(
            f"{index}: captions have changed, and this version of edje_jax cannot compute"
            f" their {', '.join(sorted(more))}; update it, or build another index"
        )
    return kept


def _write_rows(path: Path, rows: Sequence[ImageRecord]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(row_line, rows))
