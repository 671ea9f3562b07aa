"""Writing anew of what changed in a shard without its images: captions, paths and stamps."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.derived import write_derived
from edje_jax.index.manifest import Manifest
from edje_jax.index.shard_files import (
    BadStore,
    ImageRecord,
    file_entry,
    file_of,
    has_file,
    kind_of,
    next_name,
    read_rows,
    row_line,
    write_array,
)
from edje_jax.system.files import atomic_path

Embed = Callable[[list[str]], Mapping[str, np.ndarray]]
"""Function from captions to the columns that have a row for each of them, as a shard has them."""


def rewrite_words(
    folder: Path,
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
    before, files = file_of(folder, record, "rows"), dict(record["files"])
    previous = [text for row in read_rows(before) for text in row.captions]
    texts = [text for row in rows for text in row.captions]
    written = [next_name(before)]
    _write_rows(written[0], rows)
    del files[before.name]

    def named(name: str) -> Path:
        """Next name of a file of the shard."""
        if not has_file(record, kind := kind_of(name)):
            return folder / name
        path = file_of(folder, record, kind)
        del files[path.name]
        return next_name(path)

    written += write_derived(written[0], record["number"], manifest.metadata, named)
    if texts != previous:
        known = set(previous)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        made = embed(unknown)
        kept = {
            name: file_of(folder, record, name)
            for name, type in manifest.column_types.items()
            if type.per == "caption" and has_file(record, name)
        }
        if more := kept.keys() - made.keys():
            raise BadStore(
                f"{folder}: captions have changed, and this version of edje_jax cannot compute"
                f" their {', '.join(sorted(more))}; update it, or build another index"
            )
        for name, path in kept.items():
            rows_before = np.load(path, allow_pickle=False)
            of_text = dict(zip(previous, rows_before, strict=True))
            of_text |= dict(zip(unknown, made[name], strict=True))
            array = np.array([of_text[text] for text in texts], rows_before.dtype)
            written.append(next_name(path))
            write_array(written[-1], array.reshape(-1, *rows_before.shape[1:]))
            del files[path.name]
    files |= {path.name: file_entry(path) for path in written}
    return record | {"captions": len(texts), "files": files}


def _write_rows(path: Path, rows: Sequence[ImageRecord]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(row_line, rows))
