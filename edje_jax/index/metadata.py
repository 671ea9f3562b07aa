"""Metadata of indexed images: a table of named values, in one Arrow file for each shard.

A column holds values of one kind, and null where an image has none. Texts are kept as a dictionary:
each distinct one once, and its number for every row. A filter then compares the few distinct texts
of a shard, and looks rows up by number. Where every row has a text of its own, as with URLs, that
costs four bytes a row.

Files are uncompressed Arrow IPC files of one record batch, so that columns are read where they lie
in a mapped file.
"""

import keyword
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from edje_jax.data.sources.texts import in_a_line, shown
from edje_jax.types import Scalar

Kind = Literal["text", "integer", "float", "boolean", "nothing"]
"""Kind of a column's values; "nothing" where every one is null."""

ID = "id"
"""Name by which a filter asks for an image's id, which is no metadata."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {*map(str.lower, keyword.kwlist), "exists", "like", "null"}
"""Words of the languages that filters are written in, in lower case."""
_TYPES = {str: "texts", int: "numbers", float: "numbers", bool: "truth values"}
"""Types of values, and those which share a column, as messages call them."""
INTEGERS = range(-(1 << 63), 1 << 63)


class MetadataFault(NamedTuple):
    """A value that its table cannot hold, and which is null there."""

    row: int
    reason: str
    """Key, value and remedy."""


def check_names(names: Sequence[str]) -> None:
    """Check that filters can name the keys that are to be kept.

    Raises:
        ValueError: a name is no plain word, means something else in a filter, or is given twice.
    """
    for name in names:
        if name == ID:
            raise ValueError(f'metadata "{name}": every image has one anyway; leave it out')
        if not _NAME.fullmatch(name) or name.lower() in _WORDS:
            raise ValueError(
                f'metadata "{name}": a filter cannot name it; rename the key in the set to letters'
                " from a to z, digits and _, and to no word such as in, is or class"
            )
        if names.count(name) > 1:
            raise ValueError(f'metadata "{name}": given twice; name it once')


def metadata_table(
    rows: Sequence[Mapping[str, Scalar]], names: Sequence[str]
) -> tuple[Any, list[MetadataFault]]:
    """Table of the metadata of some images, and the values that it cannot hold.

    A column of whole numbers and others is float64, of whole numbers alone int64; NaN is no value.
    Where texts, numbers and truth values meet under one key, the most frequent stay (of equally
    many the first to come). The others become null and are faults, as are whole numbers beyond 64
    bits and texts with half of a surrogate pair.

    Args:
        rows: values of each image by name, as a source gives them.
        names: the columns, in this order; there may be none. Other values are passed over.

    Raises:
        ModuleNotFoundError: pyarrow is not installed; the message says how to get it.
    """
    return _table({name: [row.get(name) for row in rows] for name in names}, len(rows))


def metadata_file(table: Any) -> bytes:
    """A table as the Arrow file that `open_metadata` opens; equal tables give equal bytes."""
    pa = import_pyarrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def open_metadata(data: UInt8[np.ndarray, " bytes"]) -> Any:
    """The table in an Arrow file, such as one that `map_bytes` maps; nothing of it is copied.

    All values are looked at once: the library may read elsewhere in memory where one is damaged.

    Raises:
        ModuleNotFoundError: pyarrow is not installed; the message says how to get it.
        ValueError: the bytes are no whole file of `metadata_file`.
    """
    pa = import_pyarrow()
    try:
        table = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(data))).read_all()
        table.validate(full=True)
        kinds_of(table)
    except Exception as error:  # The library raises several kinds
        raise ValueError(f"no whole file of metadata ({in_a_line(error)})") from error
    return table


def kinds_of(table: Any) -> dict[str, Kind]:
    """Kinds of a table's columns, by their names.

    Raises:
        ValueError: a column is of no such kind.
    """
    of = import_pyarrow().types
    kinds: dict[str, Kind] = {}
    for field in table.schema:
        checks: tuple[tuple[Kind, Any], ...] = (
            ("text", of.is_dictionary),
            ("integer", of.is_integer),
            ("float", of.is_floating),
            ("boolean", of.is_boolean),
            ("nothing", of.is_null),
        )
        found: list[Kind] = [kind for kind, holds in checks if holds(field.type)]
        if not found:
            raise ValueError(f'column "{field.name}" is of type {field.type}, which none has')
        kinds[field.name] = found[0]
    return kinds


def import_pyarrow() -> Any:
    """The library of Arrow tables.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to get it.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "metadata of images needs more: pip install 'edje-jax[parquet]'"
        ) from error
    return pyarrow


def _table(columns: Mapping[str, list[Any]], rows: int) -> tuple[Any, list[MetadataFault]]:
    pa = import_pyarrow()
    arrays, faults = {}, []
    for name, values in columns.items():
        good = [None if value != value else value for value in values]  # NaN
        wrong = {row: fault for row, value in enumerate(good) if (fault := _fault(value))}
        kinds = [
            "" if row in wrong else _TYPES.get(type(each), "") for row, each in enumerate(good)
        ]
        counts = Counter(filter(None, kinds))
        kept = counts.most_common(1)[0][0] if counts else ""
        told = f"is not one of the {kept} that most images have there"
        wrong |= {row: told for row, kind in enumerate(kinds) if kind not in ("", kept)}
        for row in wrong:
            good[row] = None
        arrays[name] = _array(pa, good)
        faults += [
            MetadataFault(row, f'"{name}" is {shown(values[row])}, which {reason}; correct it')
            for row, reason in sorted(wrong.items())
        ]
    # A table of no columns has rows too, if it had a column.
    return pa.table({**arrays, "": pa.nulls(rows)}).select(list(arrays)), faults


def _fault(value: Any) -> str:
    """Why a value cannot stand in a column, as "has more than 64 bits"; "" if it can."""
    if value is None or type(value) in (bool, float):
        return ""
    if type(value) is int:
        return "" if value in INTEGERS else "has more than 64 bits"
    if type(value) is not str:
        return "is no text, number or truth value"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair or a byte that is not UTF-8"
    return ""


def _array(pa: Any, values: list[Any]) -> Any:
    """Column of values of types that share one."""
    types = {type(value) for value in values} - {type(None)}
    if float in types:
        # Lists are searched for -0.0 and for 0.0 as for two numbers; adding 0.0 leaves one.
        return pa.array([value if value is None else float(value) + 0.0 for value in values])
    if types == {str}:
        return pa.array(values).dictionary_encode()
    return pa.array(values)
