"""Metadata of an index: kinds of values, faults, and files that are read where they lie."""

import os
import re
import sys

import numpy as np
import pytest

from edje_jax.index.metadata import (
    check_names,
    kinds_of,
    metadata_file,
    metadata_table,
    open_metadata,
)
from edje_jax.index.where import Where
from edje_jax.system.mapped_files import map_bytes

pa = pytest.importorskip("pyarrow")

ROWS = [
    {"year": 2010, "weight": 1, "license": "cc0", "is_free": True, "other": "left out"},
    {"year": 2011, "weight": 2.5, "license": "cc-by"},
    {"weight": float("nan"), "license": "", "is_free": False},
    {"year": -(1 << 63), "license": "cc0"},
]
NAMES = ["year", "weight", "license", "is_free", "absent"]


def test_a_table_has_a_column_for_each_name_and_null_where_an_image_has_no_value():
    table, faults = metadata_table(ROWS, NAMES)
    assert not faults
    assert table.column_names == NAMES
    assert table["year"].to_pylist() == [2010, 2011, None, -(1 << 63)]
    assert table["weight"].to_pylist() == [1.0, 2.5, None, None]
    assert table["license"].to_pylist() == ["cc0", "cc-by", "", "cc0"]
    assert table["is_free"].to_pylist() == [True, None, False, None]
    assert table["absent"].to_pylist() == [None] * 4
    assert table["license"].chunk(0).dictionary.to_pylist() == ["cc0", "cc-by", ""]
    kinds = ["integer", "float", "text", "boolean", "nothing"]
    assert kinds_of(table) == dict(zip(NAMES, kinds, strict=True))


def test_without_images_there_is_a_table_too():
    table, faults = metadata_table([], NAMES)
    assert (table.num_rows, table.column_names, faults) == (0, NAMES, [])
    assert open_metadata(np.frombuffer(metadata_file(table), np.uint8)).equals(table)


def test_without_names_a_table_has_rows_and_filters_by_id():
    table, _ = metadata_table(ROWS, [])
    third = np.arange(4) == 2
    for each in (table, open_metadata(np.frombuffer(metadata_file(table), np.uint8))):
        assert (each.num_rows, each.column_names) == (4, [])
        found = Where.parse("id == 'c' or year == 2010").mask(each, lambda _: third)
        assert found.tolist() == third.tolist()


@pytest.mark.parametrize(
    ("values", "kept", "faults"),
    [
        (
            [1, "unknown", 2.5],
            [1.0, None, 2.5],
            ["\"n\" is 'unknown', which is not one of the numbers that most images have there;"],
        ),
        (["a", "b", 3], ["a", "b", None], ['"n" is 3, which is not one of the texts that most']),
        ([3, "a"], [3, None], ["\"n\" is 'a', which is not one of the numbers"]),
        ([True, 1, False], [True, None, False], ['"n" is 1, which is not one of the truth values']),
        ([1, 1 << 63], [1, None], ['"n" is 9223372036854775808, which has more than 64 bits']),
        (["a", "\ud800"], ["a", None], [r'"n" is .*ud800., which holds half of a surrogate pair']),
        ([1, [2]], [1, None], [r'"n" is \[2\], which is no text, number or truth value; correct']),
        ([1 << 60, 0.5], [float(1 << 60), 0.5], []),
    ],
)
def test_a_value_that_a_column_cannot_hold_is_null_and_reported(values, kept, faults):
    table, found = metadata_table([{"n": value} for value in values], ["n"])
    assert table["n"].to_pylist() == kept
    assert [row for row, value in enumerate(kept) if value is None] == [row for row, _ in found]
    for (_, reason), expected in zip(found, faults, strict=True):
        assert re.search(expected, reason) and reason.endswith("; correct it")
        reason.encode()


def test_a_file_is_read_where_it_lies_and_not_kept_open(tmp_path):
    table, _ = metadata_table(ROWS * 1000, NAMES)
    path = tmp_path / "metadata-00000.arrow"
    path.write_bytes(metadata_file(table))
    before = set(os.listdir("/proc/self/fd"))
    data = map_bytes(path)
    opened = open_metadata(data)
    assert set(os.listdir("/proc/self/fd")) == before
    start = data.ctypes.data
    buffers = [
        buffer
        for column in opened.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer
    ]
    assert len(buffers) > 5
    for buffer in buffers:
        assert start <= buffer.address and buffer.address + buffer.size <= start + len(data)
    assert all(column.num_chunks == 1 for column in opened.columns)
    del data
    path.unlink()
    assert opened.equals(table)


def test_equal_tables_are_equal_files():
    files = {metadata_file(metadata_table(ROWS * 100, NAMES)[0]) for _ in range(3)}
    assert len(files) == 1


def test_a_damaged_file_is_refused():
    data = np.frombuffer(metadata_file(metadata_table(ROWS, NAMES)[0]), np.uint8)
    for count in (0, 1, 7, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ValueError, match="no whole file of metadata"):
            open_metadata(data[:count])
    with pytest.raises(ValueError, match="no whole file of metadata"):
        open_metadata(np.zeros(1000, np.uint8))
    other = metadata_file(pa.table({"day": pa.array([0], pa.date32())}))
    with pytest.raises(ValueError, match='column "day" is of type date32'):
        open_metadata(np.frombuffer(other, np.uint8))


def test_bytes_that_were_changed_lead_nowhere_else_in_memory():
    whole = np.frombuffer(metadata_file(metadata_table(ROWS * 20, NAMES)[0]), np.uint8)
    filters = [Where.parse(text) for text in ("year > 3", "license < 'd'", "is_free == true")]
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = whole.copy()
        data[random.integers(len(data), size=2)] = random.integers(256, size=2)
        try:
            table = open_metadata(data)
        except ValueError:
            refused += 1
            continue
        for where in filters:
            assert len(where.mask(table)) == table.num_rows
    assert 100 < refused < 490


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["id"], '"id": every image has one anyway'),
        (["year", "aspect ratio"], '"aspect ratio": a filter cannot name it; rename the key'),
        (["class"], '"class": a filter cannot name it'),
        (["Like"], '"Like": a filter cannot name it'),
        (["true"], '"true": a filter cannot name it'),
        (["année"], '"année": a filter cannot name it'),
        ([""], '"": a filter cannot name it'),
        (["year", "year"], '"year": given twice'),
    ],
)
def test_names_that_a_filter_cannot_use_are_refused(names, message):
    check_names(["year", "_x1", "License"])
    with pytest.raises(ValueError, match=message):
        check_names(names)


def test_without_pyarrow_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'edje-jax\[parquet\]'"):
        metadata_table(ROWS, NAMES)
