"""The `parquet:` source: tables as the Hugging Face hub has them.

A row has a picture, as {"bytes", "path"} or as bytes, and a text or a list of texts; `naming` says
what these columns may be called. `parquet:/d/*.parquet#test` takes the rows whose column `split`
says "test".
"""

import difflib
from functools import lru_cache
from typing import Any

import numpy as np

from edje_jax.data.images import BadImage
from edje_jax.data.sources.captioned import Captioned, merged, packed
from edje_jax.data.sources.matching import matching_files, modified, short_names
from edje_jax.data.sources.naming import CAPTIONS, PICTURE_IDS, PICTURES, ROW_IDS, first_named
from edje_jax.data.sources.packed import PackedStrings

GROUPS = 4
"""Row groups of pictures that a process keeps at hand: a picture is read with its whole group."""


class Parquet(Captioned):
    """Rows of many files. Rows of one id are one picture with all their captions.

    A picture's id is that of its row where a column names one (with the file before it where the
    column is of `ROW_IDS`), else file and row, as in `train-00000/12`. Ids and captions are read at
    once, pictures by row groups, the last few of which stay in memory.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: the pattern fits no file.
        ValueError: a file is no Parquet, or misses a column, or there is a column "split" and
            `split` is not in it; the message lists those there are.
    """

    def __init__(self, pattern: str, split: str = ""):
        self.files = matching_files(pattern, ".parquet")
        self._modified = [modified(file) for file in self.files]
        self._picture: list[str] = []
        ids, captions, places = [], [], []
        splits: set[str] = set()
        for number, name in enumerate(short_names(self.files)):
            table, picture = _told(self.files[number], name, split)
            self._picture.append(picture)
            splits |= set(table["split"])
            for row, (image_id, texts, part) in enumerate(zip(*table.values(), strict=True)):
                if part == split:
                    ids.append(image_id)
                    captions.append(texts)
                    places.append((number, row))
        if not ids or (not split and splits != {""}):
            raise ValueError(_nothing(pattern, split, splits))
        rows, ids, captions = merged(ids, captions)
        self._places = np.array(places, np.int64)[rows]
        super().__init__(pattern, PackedStrings(ids), *packed(captions))

    def encoded(self, index: int) -> bytes:
        """The picture's bytes in its row; `BadImage` if there are none."""
        number, row = self._places[self._checked(index)].tolist()
        file, when = self.files[number], self._modified[number]
        try:
            starts = _group_starts(file, when)
            group = int(np.searchsorted(starts, row, side="right")) - 1
            pictures = _pictures(file, when, self._picture[number], group)
            value = pictures[row - starts[group]].as_py()
        except (OSError, ValueError) as error:  # Of Arrow, ArrowInvalid is the latter
            raise BadImage(f"{self.place(index)}: row {row} of {file}: {error}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise BadImage(f"{self.place(index)}: row {row} of {file} holds no bytes of a picture")
        return data


def _told(file: str, short: str, split: str) -> tuple[dict[str, list[Any]], str]:
    """({"id", "captions", "split"} of every row, the column of pictures)."""
    opened = _opened(file, modified(file))
    schema = opened.schema_arrow
    picture, caption, name = _columns(file, schema)
    if split and "split" not in schema.names:
        raise ValueError(
            f'{file}: no column "split" to look for "{split}" in; its columns are'
            f" {', '.join(schema.names)}. Leave #{split} out"
        )
    has_split = "split" in schema.names
    wanted = [column for column in (caption, name, "split" if has_split else "") if column]
    table = opened.read(columns=wanted)
    count = table.num_rows
    named = table[name].to_pylist() if name else [None] * count
    prefix = f"{short}/" if name in ROW_IDS else ""
    return {
        "id": [
            f"{short}/{i}" if own is None or own != own else f"{prefix}{own}"  # NaN is none too
            for i, own in enumerate(named)
        ],
        "captions": [_texts(value) for value in table[caption].to_pylist()],
        "split": table["split"].to_pylist() if has_split else [""] * count,
    }, picture


def _columns(file: str, schema: Any) -> tuple[str, str, str]:
    """Names of the columns of (pictures, captions, ids or "")."""
    import pyarrow.types as of

    def plain(kind: Any) -> Any:
        return kind.value_type if of.is_dictionary(kind) else kind

    def is_picture(kind: Any) -> bool:
        kind = plain(kind)
        holds = kind.field("bytes").type if of.is_struct(kind) and "bytes" in kind.names else kind
        return of.is_binary(holds) or of.is_large_binary(holds)

    def is_text(kind: Any) -> bool:
        is_list = of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind)
        holds = plain(kind.value_type if is_list else kind)
        return of.is_string(holds) or of.is_large_string(holds)

    pictures = [field.name for field in schema if is_picture(field.type)]
    picture = first_named(PICTURES, pictures)
    caption = first_named(CAPTIONS, [field.name for field in schema if is_text(field.type)])
    for found, what, names in (
        (picture, "pictures (bytes, or a struct that has them)", PICTURES),
        (caption, "captions (text, or a list of texts)", CAPTIONS),
    ):
        if not found:
            raise ValueError(
                f"{file}: no column of {what}; looked for {', '.join(names)}, and there are"
                f" {', '.join(f'{field.name} ({field.type})' for field in schema)}. Rename yours"
            )
    return picture, caption, first_named((*PICTURE_IDS, *ROW_IDS), schema.names)


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value or []
    return [text for text in texts if text and text.strip()]


def _nothing(pattern: str, split: str, splits: set[str]) -> str:
    there = sorted(map(str, splits))
    if not there:
        return f"{pattern}: the tables have no row"
    if not split:
        return f"{pattern}: which split? Add #{there[0]}, or another of {', '.join(there)}"
    near = difflib.get_close_matches(split, there, n=1)
    guess = f'did you mean "#{near[0]}"? ' if near else ""
    return f'{pattern}: no row of split "{split}"; {guess}There are {", ".join(there)}'


@lru_cache(maxsize=GROUPS)
def _pictures(file: str, modified: int, column: str, group: int) -> Any:
    import pyarrow.parquet as pq

    # Opened anew, as threads may not share a reader; what its end says is known already.
    reader = pq.ParquetFile(file, metadata=_opened(file, modified).metadata)
    return reader.read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=256)
def _opened(file: str, modified: int) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"parquet: needs more ({error}); pip install 'edje-jax[parquet]'"
        ) from error
    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a whole Parquet file ({error})") from error


@lru_cache(maxsize=256)
def _group_starts(file: str, modified: int) -> np.ndarray:
    facts = _opened(file, modified).metadata
    counts = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
    return np.cumsum([0, *counts])
