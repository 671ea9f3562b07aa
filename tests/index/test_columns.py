"""Columns of shards: those that this version does not know are kept, and follow their rows.

Covers index/column.py, index/manifest.py and index/shard_files.py.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edje_jax.index import build as building
from edje_jax.index.build import build
from edje_jax.index.maintain import compact, remove
from edje_jax.index.manifest import ColumnType, Manifest
from edje_jax.index.shard_files import BadStore, file_entry, file_of, read_rows
from edje_jax.index.store import Store, verify
from tests.colour_runtime import RUNTIME, STAMP, Colours

CODES = {"codes": ColumnType("uint8", (2,)), "caption-codes": ColumnType("uint16", (), "caption")}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)


@pytest.fixture
def index(tmp_path) -> Path:
    """An index of twelve images, whose shards have two columns that this version does not know:
    row i holds i and 10 i, the i-th caption holds 100 i."""
    folder = tmp_path / "index"
    assert build(RUNTIME, STAMP, Colours(12), "colours", folder)
    manifest, first = Manifest.read(folder), 0
    for record in manifest.shards:
        ids = np.arange(first, first + record["rows"])
        arrays = {
            "codes": np.stack([ids, 10 * ids], axis=1).astype(np.uint8),
            "caption-codes": (100 * ids).astype(np.uint16),
        }
        for name, array in arrays.items():
            path = folder / f"{name}-{record['number']:05d}.npy"
            np.save(path, array)
            record["files"][path.name] = file_entry(path)
        first += record["rows"]
    dataclasses.replace(manifest, columns=CODES, unknown={"made_by": "a newer version"}).write(
        folder
    )
    return folder


def codes(folder: Path) -> dict[str, tuple[list[int], int]]:
    """{id: (code of the image, code of its caption)}."""
    store = Store(folder)
    assert not list(verify(folder))
    images, captions = store.column("codes")[:], store.column("caption-codes")[:]
    return {
        store.row(image).id: (images[image].tolist(), int(captions[place]))
        for place, (image, _) in enumerate(store.captions)
    }


def expected(*numbers: int) -> dict[str, tuple[list[int], int]]:
    return {f"{i:02d}": ([i, 10 * i], 100 * i) for i in numbers}


def test_an_unknown_column_is_kept(index):
    assert codes(index) == expected(*range(12))
    remove(index, ["03", "10", "11"])
    kept = [i for i in range(12) if i not in (3, 10, 11)]
    assert codes(index) == expected(*kept)
    assert compact(index) == 3
    assert codes(index) == expected(*kept)
    manifest = Manifest.read(index)
    assert manifest.columns == CODES and manifest.unknown == {"made_by": "a newer version"}
    raw = json.loads((index / "manifest.json").read_text())
    assert raw["columns"]["codes"] == {"dtype": "uint8", "shape": [2], "per": "image"}
    assert raw["made_by"] == "a newer version"


def test_a_shard_that_lacks_a_column_is_named(index):
    assert build(RUNTIME, STAMP, Colours(14), "colours", index)
    store = Store(index)
    assert len(store) == 14 and not list(verify(index))
    with pytest.raises(BadStore, match="names no codes of shard 3; build the index again"):
        store.column("codes")
    with pytest.raises(BadStore, match="no column 'frames'; there are tokens, embeddings, "):
        store.column("frames")


def test_captions_do_not_change_under_a_column_that_cannot_be_computed(index):
    class Renamed(Colours):
        def captions(self, index: int) -> list[str]:
            return ["another caption"] if index == 7 else super().captions(index)

    with pytest.raises(BadStore, match=r"captions have changed, and this .* their caption-codes"):
        build(RUNTIME, STAMP, Renamed(12), "colours", index)
    assert codes(index) == expected(*range(12))


def rewrite_rows(folder: Path, change) -> None:
    """Change every row of an index, as another version would have written it."""
    manifest, number = Manifest.read(folder), 0
    for record in manifest.shards:
        path = file_of(folder, record, "rows")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            change(row, number)
            number += 1
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        record["files"][path.name] = file_entry(path)
        starts = file_of(folder, record, "row_starts")
        lengths = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
        np.save(starts, np.cumsum([0, *lengths], dtype=np.uint64))
        record["files"][starts.name] = file_entry(starts)
    manifest.write(folder)


def test_unknown_keys_of_rows_are_kept(tmp_path):
    class Renamed(Colours):
        def captions(self, index: int) -> list[str]:
            return ["another caption"] if index == 7 else super().captions(index)

    def add(row, number):
        row |= {"language": "de" * number, "unknown": [number]}

    def keys() -> dict[str, Any]:
        store = Store(tmp_path)
        assert not list(verify(tmp_path))
        rows = [store.row(image) for image in range(len(store))]
        return {row.id: (row.unknown, row.captions) for row in rows}

    assert build(RUNTIME, STAMP, Colours(12), "colours", tmp_path)
    captions = {name: texts for name, (_, texts) in keys().items()}
    assert all(unknown == {} for unknown, _ in keys().values())
    rewrite_rows(tmp_path, add)
    expected = {
        f"{i:02d}": ({"language": "de" * i, "unknown": [i]}, captions[f"{i:02d}"])
        for i in range(12)
    }
    assert keys() == expected
    report = build(RUNTIME, STAMP, Renamed(12), "colours", tmp_path)
    assert report and report.recaptioned == ["07"]
    expected["07"] = (expected["07"][0], ["another caption"])
    assert keys() == expected
    remove(tmp_path, ["06"])
    del expected["06"]
    assert compact(tmp_path) == 1 and keys() == expected


def test_a_row_without_a_key_takes_its_default_or_is_damaged(tmp_path):
    assert build(RUNTIME, STAMP, Colours(3), "colours", tmp_path)
    rewrite_rows(tmp_path, lambda row, _: [row.pop(name) for name in ("stamp", "digest")])
    assert {(row.stamp, row.digest) for row in map(Store(tmp_path).row, range(3))} == {("", "")}
    rewrite_rows(tmp_path, lambda row, _: row.pop("captions"))
    with pytest.raises(BadStore, match=r"rows-00000.jsonl: damaged .*captions"):
        Store(tmp_path).row(0)
    rows = tmp_path / "rows-00000.jsonl"
    for text in ("[1]", "1", "null", "{}", '{"thumbnail": 1}'):
        rows.write_text(text)
        with pytest.raises(BadStore, match=r"rows-00000.jsonl: damaged"):
            list(read_rows(rows))


def test_a_column_reads_the_rows_asked_for(index):
    column = Store(index).column("codes")
    assert column.shape == (12, 2) and len(column) == 12
    np.testing.assert_array_equal(column[[11, 0, 4]], [[11, 110], [0, 0], [4, 40]])
    np.testing.assert_array_equal(column[3:6], [[3, 30], [4, 40], [5, 50]])
    np.testing.assert_array_equal(np.asarray(column)[:, 0], np.arange(12))
    assert column[:0].shape == (0, 2) and column[:].dtype == np.uint8


def test_missing_fields_take_defaults_and_a_manifest_says_no_more_than_it_must(tmp_path):
    build(RUNTIME, STAMP, Colours(3), "colours", tmp_path)
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_text())
    assert list(raw) == [
        "format", "model", "token_dtype", "num_tokens", "width", "embedding_size", "spec", "id",
        "shards", "removed", "rejected", "dropped", "faults", "embedding_dtype",
    ]  # fmt: skip
    before = Manifest.read(tmp_path)
    for name in ("removed", "rejected", "dropped", "faults", "embedding_dtype"):
        del raw[name]
    path.write_text(json.dumps(raw))
    assert Manifest.read(tmp_path) == before
    for change in ({"shards": None}, {"columns": {"codes": {"dtype": "complex"}}}):
        path.write_text(json.dumps(raw | change))
        with pytest.raises(BadStore, match="damaged"):
            Manifest.read(tmp_path)
    del raw["width"]
    path.write_text(json.dumps(raw))
    with pytest.raises(BadStore, match=r"damaged, or written by a newer .*'width'"):
        Manifest.read(tmp_path)
