"""Writing anew of what changed in a shard without its images: captions, paths and stamps."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.files import IndexFiles
from edje_jax.index.row_lookup import look_up
from edje_jax.index.shard_files import (
    BadStore,
    ImageRecord,
    file_entry,
    has_file,
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
    record: dict[str, Any],
    rows: Sequence[ImageRecord],
    embed: Embed,
    per_caption: Collection[str] = ("captions",),
) -> dict[str, Any]:
    """Write a shard's rows, and its captions where these differ, under new names.

    Args:
        rows: as many as the shard has; what differs is captions, paths, stamps and digests.
        embed: computes the columns of captions that the shard does not have.
        per_caption: columns with a row for each caption.

    Returns:
        The shard's new record; the files count once a manifest holds it.

    Raises:
        BadStore: captions differ, and the shard has a column of them that `embed` does not compute.
    """
    files, written = dict(record["files"]), []

    def renewed(kind: str) -> Path:
        name = name_of(record, kind, index)
        del files[name]
        written.append(next_name(index.folder / name))
        return written[-1]

    before = read_rows(index.path(record, "rows"))
    previous = [text for row in before for text in row.captions]
    texts = [text for row in rows for text in row.captions]
    path = renewed("rows")
    _write_rows(path, rows)
    for kind, array in look_up(path)._asdict().items():
        if has_file(record, kind):
            write_array(renewed(kind), array)
    if texts != previous:
        known = set(previous)
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        made = embed(unknown)
        kept = {name: index.path(record, name) for name in per_caption if has_file(record, name)}
        if more := kept.keys() - made.keys():
            raise BadStore(
                f"{index}: captions have changed, and this version of edje_jax cannot compute"
                f" their {', '.join(sorted(more))}; update it, or build another index"
            )
        for name, path in kept.items():
            rows_before = np.load(path, allow_pickle=False)
            of_text = dict(zip(previous, rows_before, strict=True))
            of_text |= dict(zip(unknown, made[name], strict=True))
            array = np.array([of_text[text] for text in texts], rows_before.dtype)
            write_array(renewed(name), array.reshape(-1, *rows_before.shape[1:]))
    entries = {path.name: file_entry(path) for path in written}
    index.publish(entries)
    index.release(entries)
    files |= entries
    return record | {"captions": len(texts), "files": files}


def _write_rows(path: Path, rows: Sequence[ImageRecord]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(map(row_line, rows))
