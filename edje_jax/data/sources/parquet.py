"""The `parquet:` source: tables as the Hugging Face hub has them.

A row has an image, as {"bytes", "path"} or as bytes, and a text or a list of texts, in any of the
types that Arrow has for these; `texts` says what the columns may be called.
`parquet:/d/*.parquet#test` takes the rows whose column `split` says "test".
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from edje_jax.data.images import BadImage, read_file
from edje_jax.data.metadata import scalars
from edje_jax.data.sources.captioned import Captioned, merge_records, pack_captions
from edje_jax.data.sources.matching import matching_files, modified, short_names
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.texts import (
    CAPTIONS,
    IMAGE_FIELDS,
    IMAGE_ID_FIELDS,
    ROW_IDS,
    first_named,
    in_a_line,
    listed,
    path_fault,
    printable,
    refuse_if_none,
    text_fault,
    usable,
)
from edje_jax.data.stamps import file_stamp
from edje_jax.types import BadRecord, Scalar

GROUPS = 4
"""Row groups of images, and of metadata, that a process keeps at hand: a row is read with its whole
group."""


class Parquet(Captioned):
    """Rows of many files. Rows of one id are one image with all their captions.

    An image's id is that of its row where a column names one (with the file before it where the
    column is of `ROW_IDS`), else file and row, as in `train-00000/12`. Ids and captions are read at
    once, images by row groups, the last few of which stay in memory. A row whose id is no text is
    left out (`bad`), a caption that is none is dropped (`caption_faults`).

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: the pattern fits no file.
        ValueError: a file is no Parquet, or misses a column, or there is a column "split" and
            `split` is not in it; the message lists those there are.
    """

    def __init__(self, pattern: str, split: str):
        self.files = matching_files(pattern, ".parquet")
        self._modified = [modified(file) for file in self.files]
        self._stamps = [file_stamp(file) for file in self.files]
        self._image: list[str] = []
        ids, captions, places, faults, bad = [], [], [], {}, []
        splits: set[str] = set()
        for number, (file, short) in enumerate(
            zip(self.files, short_names(self.files), strict=True)
        ):
            rows, image = _read_rows(file, short, split)
            self._image.append(image)
            for row, (image_id, value, part) in enumerate(rows):
                splits.add(part)
                if part != split:
                    continue
                if fault := text_fault(image_id):
                    bad.append(BadRecord(f"{file}: row {row}", f"its id {fault}; correct it"))
                    continue
                good, fault = usable(listed(value))
                if fault:
                    faults[len(ids)] = f"{file}: row {row}: {fault}"
                ids.append(image_id)
                captions.append(good)
                places.append((number, row))
        if not (ids or bad) or (not split and splits != {""}):
            raise ValueError(_nothing(pattern, split, splits))
        refuse_if_none(pattern, len(ids), bad)
        found = merge_records(ids, captions, faults)
        self._places = np.array(places, np.int64)[found.rows]
        ids, texts = PackedStrings(found.ids), pack_captions(found.captions)
        super().__init__(pattern, ids, *texts, found.faults, bad, found.joined)

    def stamp(self, index: int) -> str:
        """The file's size and modification time, and the row; "" of a remote file, or where rows
        name files of images."""
        number, row = self._places[self._checked(index)].tolist()
        stamp, file = self._stamps[number], self.files[number]
        if _names_files(file, self._modified[number], self._image[number]):
            return ""
        return stamp and f"{stamp}-{row}"

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Further columns of the row with texts, numbers or truth values; read by row groups.

        Raises:
            BadImage: the file cannot be read.
        """
        number, row = self._places[self._checked(index)].tolist()
        file, when = self.files[number], self._modified[number]
        try:
            group, row_in_group = _group_of(file, when, row)
            table = _further(file, when, group)
            values = {name: _value(table[name][row_in_group]) for name in table.column_names}
        except Exception as error:  # The library raises several kinds
            where = f"{self.describe(index)}: row {row} of {file}"
            raise BadImage(f"{where}: {in_a_line(error)}") from error
        return scalars(values)

    def encoded(self, index: int) -> bytes:
        """The image's bytes in its row, else the file that it names; `BadImage` if neither."""
        number, row = self._places[self._checked(index)].tolist()
        file, when = self.files[number], self._modified[number]
        where = f"{self.describe(index)}: row {row} of {file}"
        try:
            group, row_in_group = _group_of(file, when, row)
            value = _images(file, when, self._image[number], group)[row_in_group].as_py()
        except Exception as error:  # The library raises several kinds
            raise BadImage(f"{where}: {in_a_line(error)}") from error
        data, path = value, None
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
        if data:
            return data
        if isinstance(path, str) and not path_fault(path):
            return read_file(os.path.join(os.path.dirname(file), path))
        raise BadImage(f"{where} holds no bytes of an image")


def _read_rows(file: str, short: str, split: str) -> tuple[Iterator[tuple[str, Any, str]], str]:
    """((id, what the column of captions holds, split) of every row, the column of images)."""
    schema = _footer(file, modified(file)).schema.to_arrow_schema()
    image, caption, name = _columns(file, schema)
    if split and "split" not in schema.names:
        raise ValueError(
            f'{file}: no column "split" to look for "{split}" in; its columns are'
            f" {', '.join(schema.names)}. Leave #{split} out"
        )
    of_split = "split" if "split" in schema.names else ""
    wanted = [column for column in (caption, name, of_split) if column]
    try:
        with _reader(file, modified(file)) as reader:
            table = reader.read(columns=wanted)
        columns = {column: _column(table[column]) for column in wanted}
    except Exception as error:  # The library raises several kinds
        wrong = f"damaged ({in_a_line(error)}); download or write it again"
        raise ValueError(f"{file}: {wrong}") from error
    prefix = f"{short}/" if name in ROW_IDS else ""

    def metadata(row: int) -> tuple[str, Any, str]:
        own = _text(columns[name][row]) if name else ""
        part = _text(columns[of_split][row]) if of_split else ""
        return prefix + own if own else f"{short}/{row}", columns[caption][row], part

    return map(metadata, range(table.num_rows)), image


def _column(column: Any) -> list[Any]:
    """The values of a column; a byte that is not UTF-8 is half of a surrogate pair in them."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        if isinstance(scalar, Mapping):
            return {name: _value(one) for name, one in scalar.items()}
        inner = getattr(scalar, "values", None)
        return _value(scalar.value) if inner is None else [_value(one) for one in inner]


def _text(value: Any) -> str:
    """An id or a split as text; "" for none, which is NaN where pandas wrote it."""
    if value is None or value != value:
        return ""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _columns(file: str, schema: Any) -> tuple[str, str, str]:
    """Names of the columns of (images, captions, ids or "")."""
    import pyarrow as pa

    images = [field.name for field in schema if _is_image(field.type)]
    image = first_named(IMAGE_FIELDS, images)
    texts = [field.name for field in schema if _is_text(field.type)]
    nothing = [field.name for field in schema if _is_text(field.type, pa.types.is_null)]
    caption = first_named(CAPTIONS, texts) or first_named(CAPTIONS, nothing)
    for found, what, names in (
        (image, "images (bytes, or a struct that has them)", IMAGE_FIELDS),
        (caption, "captions (text, or a list of texts)", CAPTIONS),
    ):
        if not found:
            raise ValueError(
                f"{file}: no column of {what}; looked for {', '.join(names)}, and there are"
                f" {', '.join(f'{field.name} ({field.type})' for field in schema)}. Rename yours"
            )
    return image, caption, first_named((*IMAGE_ID_FIELDS, *ROW_IDS), schema.names)


def _plain(kind: Any) -> Any:
    """Type of the values themselves, without extension, dictionary or run-end encoding."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as of

    return any(
        check(_plain(kind))
        for check in (of.is_binary, of.is_large_binary, of.is_binary_view, of.is_fixed_size_binary)
    )


def _is_image(kind: Any) -> bool:
    """Bytes, or a struct with such or (where it names files alone) with nothing as "bytes"."""
    import pyarrow.types as of

    kind = _plain(kind)
    if of.is_struct(kind) and "bytes" in kind.names:
        kind = kind.field("bytes").type
        return _is_bytes(kind) or of.is_null(kind)
    return _is_bytes(kind)


def _is_string(kind: Any) -> bool:
    """Whether a type is text, or the bytes of a text."""
    import pyarrow.types as of

    return (
        of.is_string(kind) or of.is_large_string(kind) or of.is_string_view(kind) or _is_bytes(kind)
    )


def _is_scalar(kind: Any) -> bool:
    """Whether a type is text, numbers or truth values."""
    import pyarrow.types as of

    kind = _plain(kind)
    is_number = of.is_integer(kind) or of.is_floating(kind) or of.is_boolean(kind)
    return is_number or (_is_string(kind) and not _is_bytes(kind))


def _is_text(kind: Any, is_one: Callable[[Any], bool] = _is_string) -> bool:
    """Whether `is_one` holds for a type, for the items of a list type, or for the field of a struct
    type that `CAPTIONS` names."""
    import pyarrow.types as of

    kind = _plain(kind)
    if of.is_struct(kind):
        name = first_named(CAPTIONS, kind.names)
        return bool(name) and _is_text(kind.field(name).type, is_one)
    lists = (
        of.is_list,
        of.is_large_list,
        of.is_fixed_size_list,
        of.is_list_view,
        of.is_large_list_view,
    )
    if any(check(kind) for check in lists):
        return _is_text(kind.value_type, is_one)
    return is_one(kind)


def _nothing(pattern: str, split: str, splits: set[str]) -> str:
    there = sorted(map(printable, splits - {""}))
    if not splits:
        return f"{pattern}: the tables have no row"
    if not split:
        return f"{pattern}: which split? Add #{there[0]}, or another of {', '.join(there)}"
    near = difflib.get_close_matches(split, there, n=1)
    guess = f'did you mean "#{near[0]}"? ' if near else ""
    return f'{pattern}: no row of split "{split}"; {guess}There are {", ".join(there) or "none"}'


@lru_cache(maxsize=GROUPS)
def _images(file: str, modified: int, column: str, group: int) -> Any:
    with _reader(file, modified) as reader:
        return reader.read_row_group(group, columns=[column])[column]


@lru_cache(maxsize=GROUPS)
def _further(file: str, modified: int, group: int) -> Any:
    """Columns of a row group that are neither image nor captions nor id, and hold single values."""
    schema = _footer(file, modified).schema.to_arrow_schema()
    others = _columns(file, schema)
    wanted = [each.name for each in schema if _is_scalar(each.type) and each.name not in others]
    with _reader(file, modified) as reader:
        return reader.read_row_group(group, columns=wanted)


def _reader(file: str, modified: int) -> Any:
    """A file, opened anew: threads may not share a reader, and a process may keep few open."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, metadata=_footer(file, modified))


@lru_cache(maxsize=256)
def _footer(file: str, modified: int) -> Any:
    """Metadata in a file's footer: its schema and row groups."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"parquet: needs more ({error}); pip install 'edje-jax[parquet]'"
        ) from error
    try:
        with pq.ParquetFile(file) as reader:
            return reader.metadata
    except Exception as error:  # The library raises several kinds
        if isinstance(error, OSError) and error.errno:
            raise  # The system's, such as that too many files are open
        raise ValueError(f"{file}: not a whole Parquet file ({in_a_line(error)})") from error


@lru_cache(maxsize=256)
def _names_files(file: str, modified: int, column: str) -> bool:
    """Whether rows may have no bytes of an image: Parquet's statistics tell, if there are any."""
    facts = _footer(file, modified)
    groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(facts.num_columns)]
    bytes_of = [chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"]
    return any(not chunk.statistics or chunk.statistics.null_count for chunk in bytes_of)


def _group_of(file: str, modified: int, row: int) -> tuple[int, int]:
    """(row group of a row, number of the row in it)."""
    starts = _group_starts(file, modified)
    group = int(np.searchsorted(starts, row, side="right")) - 1
    return group, row - int(starts[group])


@lru_cache(maxsize=256)
def _group_starts(file: str, modified: int) -> np.ndarray:
    facts = _footer(file, modified)
    counts = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
    return np.cumsum([0, *counts])
