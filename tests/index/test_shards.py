"""Shards: written part by part, opened without reading rows, merged and brought up to date.

Covers index/changing.py, index/derived.py, index/embeddings.py, index/gone.py, index/rewrite.py,
index/row_lookup.py, index/shard.py and index/shard_writer.py.
"""

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.config.model import EmbeddingDtype
from edje_jax.index import build as building
from edje_jax.index import maintain, row_lookup, shard
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.embeddings import from_stored, to_stored
from edje_jax.index.maintain import compact, remove
from edje_jax.index.manifest import Manifest
from edje_jax.index.row_lookup import RowLookup
from edje_jax.index.shard_files import BadStore, ImageRecord, file_entry, kind_of
from edje_jax.index.shard_writer import ShardWriter
from edje_jax.index.store import Store, verify
from edje_jax.runtimes.base import Encoded
from edje_jax.search.cascade import search_images
from tests.colour_runtime import RUNTIME, STAMP, ColourRuntime, Colours


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Shards of ten images in parts of four."""
    monkeypatch.setattr(building, "SHARD_ROWS", 10)
    monkeypatch.setattr(building, "PART_ROWS", 4)
    monkeypatch.setattr(building, "BATCH", 2)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def held(folder: Path) -> dict[str, tuple[list[str], bytes, bytes, list[bytes], bytes]]:
    """All that an index has of each image, by id."""
    store = Store(folder)
    assert not list(verify(folder))
    texts: dict[int, list[bytes]] = {image: [] for image in range(len(store))}
    for number, (image, _) in enumerate(store.captions):
        texts[image].append(store.caption_embeddings[[number]].tobytes())
    return {
        store.row(i).id: (
            store.row(i).captions,
            store.tokens(np.array([i])).columns["tokens"].tobytes(),
            store.embeddings[[i]].tobytes(),
            texts[i],
            store.thumbnail(i),
        )
        for i in range(len(store))
    }


class Killed(BaseException):
    """The process is gone."""


def test_a_build_that_is_killed_after_any_file_goes_on_after_its_last_whole_part(
    tmp_path, monkeypatch
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build(RUNTIME, STAMP, Colours(23), "colours", whole)
    encoded, deaths, at = [], 0, 0
    plain = os.replace

    def dying(*names):
        nonlocal touched
        touched += 1
        if touched == at:
            raise Killed
        plain(*names)

    class Counting(ColourRuntime):
        def encode_images(self, images: np.ndarray) -> Encoded:
            encoded.extend(images)
            return super().encode_images(images)

    while True:
        at, touched = at + 1, 0
        shutil.rmtree(cut, ignore_errors=True)
        encoded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                build(Counting(), STAMP, Colours(23), "colours", cut)
                break
            except Killed:
                deaths += 1
        build(Counting(), STAMP, Colours(23), "colours", cut)
        assert files(cut) == files(whole), f"killed at file {at}"
        assert len(encoded) <= 23 + 4, "one part is repeated at most"
    assert deaths >= 40


def test_what_a_killed_process_wrote_of_a_part_is_cut_off(tmp_path):
    def part(first: int, rows: int) -> tuple:
        ids = np.arange(first, first + rows, dtype=np.float32)
        named = [ImageRecord(f"{i:.0f}", "", ["a", "b"], (0, 0)) for i in ids]
        columns = {"embeddings": ids[:, None], "captions": np.repeat(ids, 2)[:, None]}
        return columns, named, [b"jpeg%d" % i for i in ids]

    with ShardWriter(tmp_path, 7) as writer:
        writer.append(*part(0, 3), {"x": "no image"})
        with pytest.raises(BlockingIOError, match="another process is writing here"):
            ShardWriter(tmp_path, 7)
    for path in tmp_path.glob("*.partial"):
        with path.open("ab") as file:
            file.write(b"cut sho")
    with ShardWriter(tmp_path, 7) as writer:
        assert writer.parts == 1 and writer.rejected == {"x": "no image"}
        writer.append(*part(3, 2))
        record = writer.finish()
        writer.clear()
    assert record["rows"] == 5 and record["captions"] == 10
    assert np.load(tmp_path / "embeddings-00007.npy").ravel().tolist() == [0, 1, 2, 3, 4]
    assert np.load(tmp_path / "captions-00007.npy").shape == (10, 1)
    assert (tmp_path / "thumbnails-00007.bin").read_bytes() == b"jpeg0jpeg1jpeg2jpeg3jpeg4"
    assert np.load(tmp_path / "caption_starts-00007.npy").tolist() == [0, 2, 4, 6, 8, 10]
    assert {path.name for path in tmp_path.iterdir()} == record["files"].keys()


def test_opening_reads_no_row(tmp_path, monkeypatch):
    build(RUNTIME, STAMP, Colours(23), "colours", tmp_path)
    expected = held(tmp_path)

    def read(*_):
        raise AssertionError("a row was read")

    with monkeypatch.context() as patch:
        patch.setattr(shard, "parse_row", read)
        patch.setattr(shard, "look_up", read)
        opened = ImageIndex.open(tmp_path)
        assert len(opened) == 23 and len(opened.store.captions) == len(list(expected))
        search_images(RUNTIME, opened, ["red"], k=9)
    assert held(tmp_path) == expected


def test_what_counts_no_more_is_held_as_runs(tmp_path):
    build(RUNTIME, STAMP, Colours(23), "colours", tmp_path)
    remove(tmp_path, ["02", "03", "04", "07", "10", "19"])
    store = Store(tmp_path)
    gone = [[each.tolist() for each in one.gone_images()] for one in store.shards]
    assert gone == [[[2, 7], [3, 1]], [[0, 9], [1, 1]], [[], []]]
    for one, rows in zip(store.shards, ([2, 3, 4, 7], [0, 9], []), strict=True):
        counts = one.lookup.caption_starts.astype(int)
        captions = [caption for row in rows for caption in range(counts[row], counts[row + 1])]
        starts, lengths = one.gone_captions()
        runs = zip(starts.tolist(), lengths.tolist(), strict=True)
        assert [at + i for at, length in runs for i in range(length)] == captions
        assert not set(starts.tolist()) & set((starts + lengths).tolist())


def test_damaged_metadata_are_told_with_their_file(tmp_path):
    pytest.importorskip("pyarrow")
    build(RUNTIME, STAMP, Colours(12), "colours", tmp_path, BuildOptions(metadata=("year",)))
    path = tmp_path / "metadata-00001.arrow"
    path.write_bytes(b"x" * path.stat().st_size)
    store = Store(tmp_path)
    assert store.shards[0].metadata.num_rows == 10
    told = r"metadata-00001\.arrow: damaged \(.*\); build the index again"
    with pytest.raises(BadStore, match=told):
        ImageIndex.open(tmp_path).select(where="year == 2000")
    with pytest.raises(BadStore, match=told):
        _ = store.metadata_kinds


def test_images_are_found_by_ids_even_where_hashes_collide(tmp_path, monkeypatch):
    def alike(ids):
        return np.array([len(id) for id in ids], np.uint64)

    monkeypatch.setattr(row_lookup, "hash_ids", alike)
    monkeypatch.setattr(shard, "hash_ids", alike)
    build(RUNTIME, STAMP, Colours(23), "colours", tmp_path)
    store = Store(tmp_path)
    assert [store.image_of_id[f"{i:02d}"] for i in range(23)] == list(range(23))
    assert "99" not in store.image_of_id and "absent" not in store.image_of_id
    remove(tmp_path, ["07", "21"])
    left = [f"{i:02d}" for i in range(23) if i not in (7, 21)]
    assert list(Store(tmp_path).image_of_id) == left
    assert build(RUNTIME, STAMP, Colours(23), "colours", tmp_path).removed == ["07", "21"]
    assert compact(tmp_path) == 2 and list(held(tmp_path)) == left


def test_compacting_merges_small_shards_and_keeps_every_row(tmp_path, monkeypatch):
    for count in (3, 5, 9, 12, 13, 30, 31):
        build(RUNTIME, STAMP, Colours(count), "colours", tmp_path)
    before = held(tmp_path)
    assert [len(one) for one in Store(tmp_path).shards] == [3, 2, 4, 3, 1, 10, 7, 1]
    assert compact(tmp_path) == 0
    assert held(tmp_path) == before
    assert [len(one) for one in Store(tmp_path).shards] == [12, 1, 10, 8]
    kept = files(tmp_path)
    assert compact(tmp_path) == 0 and files(tmp_path) == kept, "nothing is left to be done"
    remove(tmp_path, ["00", "15"])
    assert compact(tmp_path) == 2
    assert held(tmp_path) == {id: all for id, all in before.items() if id not in ("00", "15")}
    listed = {name for record in Manifest.read(tmp_path).shards for name in record["files"]}
    assert {path.name for path in tmp_path.iterdir()} == {
        *listed, "manifest.json", "rejected.csv"
    }  # fmt: skip


def test_a_compaction_that_is_killed_anywhere_leaves_a_whole_index(tmp_path, monkeypatch):
    made, index = tmp_path / "made", tmp_path / "index"
    for count in (3, 5, 17, 18):
        build(RUNTIME, STAMP, Colours(count), "colours", made)
    remove(made, ["04"])
    expected, at = held(made), 0
    plain = os.replace

    def dying(*names):
        nonlocal touched
        touched += 1
        if touched == at:
            raise Killed
        plain(*names)

    while True:
        at, touched = at + 1, 0
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(made, index)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying)
            try:
                compact(index)
                break
            except Killed:
                assert held(index) == expected
        compact(index)
        assert held(index) == expected
    assert at > 20


def test_an_index_of_format_2_opens_and_is_brought_up_to_date_by_compacting(tmp_path):
    build(RUNTIME, STAMP, Colours(23), "colours", tmp_path)
    expected = held(tmp_path)
    remove(tmp_path, ["03"])
    raw = json.loads((tmp_path / "manifest.json").read_text())
    for record in raw["shards"]:
        for name in list(record["files"]):
            if kind_of(name) in (*RowLookup._fields, "gone"):
                (tmp_path / name).unlink()
                del record["files"][name]
    del raw["embedding_dtype"]
    (tmp_path / "manifest.json").write_text(json.dumps(raw | {"format": 2}))
    del expected["03"]
    assert held(tmp_path) == expected and Store(tmp_path).shards[0].is_old
    assert compact(tmp_path) == 1
    assert held(tmp_path) == expected
    store = Store(tmp_path)
    assert store.manifest.format == 3 and not any(one.is_old for one in store.shards)


@pytest.mark.parametrize("dtype", get_args(EmbeddingDtype))
def test_embeddings_are_stored_in_any_of_their_dtypes(tmp_path, dtype):
    exact, folder = tmp_path / "exact", tmp_path / dtype
    build(RUNTIME, STAMP, Colours(12), "colours", exact)
    options = BuildOptions(embedding_dtype=dtype)
    build(RUNTIME, STAMP, Colours(12), "colours", folder, options)
    truth, store = Store(exact), Store(folder)
    assert all(part.dtype == np.dtype(dtype) for part in store.embeddings.parts)
    assert store.embeddings.dtype == np.float32
    near = {"float32": 0, "float16": 1e-3, "int8": 1e-2}[dtype]
    for name in ("embeddings", "captions"):
        got, want = store.column(name)[:], truth.column(name)[:]
        np.testing.assert_allclose(got, want, atol=near)
        lengths = np.linalg.norm(want, axis=1)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), lengths, atol=1e-6)
        np.testing.assert_array_equal(store.column(name)[[11, 3]], got[[11, 3]])
    sizes = [sum(part.nbytes for part in one.embeddings.parts) for one in (truth, store)]
    assert sizes[1] * np.dtype(np.float32).itemsize == sizes[0] * np.dtype(dtype).itemsize

    class Renamed(Colours):
        def captions(self, index: int) -> list[str]:
            return ["blue and red"] if index == 7 else super().captions(index)

    assert build(RUNTIME, STAMP, Renamed(12), "colours", folder, options).recaptioned == ["07"]
    (number,) = [i for i, (image, _) in enumerate(Store(folder).captions) if image == 7]
    got = Store(folder).caption_embeddings[number : number + 1]
    np.testing.assert_allclose(got, RUNTIME.embed_texts(["blue and red"]), atol=near)
    other = "int8" if dtype != "int8" else "float32"
    with pytest.raises(BadStore, match=f"keeps embeddings as {dtype}, asked for {other}"):
        build(RUNTIME, STAMP, Colours(12), "colours", folder, BuildOptions(embedding_dtype=other))


def test_int8_keeps_directions_and_zeros():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 96)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[7] = 0
    read = from_stored(to_stored(x, "int8"))
    assert (read[7] == 0).all()
    cosines = (read * x).sum(axis=1)[np.arange(50) != 7]
    assert cosines.min() > 0.9999


def test_processes_get_a_shard_each_of_a_small_set(tmp_path):
    reports = [
        build(RUNTIME, STAMP, Colours(8), "colours", tmp_path, BuildOptions(share=(part, 4)))
        for part in range(4)
    ]
    assert reports[:3] == [None] * 3 and len(reports[3].new) == 8
    assert [len(one) for one in Store(tmp_path).shards] == [2, 2, 2, 2]


def test_a_damaged_row_is_named_when_it_is_read(tmp_path):
    build(RUNTIME, STAMP, Colours(9), "colours", tmp_path)
    rows = tmp_path / "rows-00000.jsonl"
    data = rows.read_bytes()
    place = data.index(b'"captions"', len(data) // 2)
    rows.write_bytes(data[:place] + b"x" + data[place + 1 :])
    store = Store(tmp_path)
    assert store.row(0).id == "00"
    with pytest.raises(BadStore, match=r"rows-00000.jsonl: damaged"):
        [store.row(image) for image in range(9)]
    assert [name for name, _ in verify(tmp_path)] == ["rows-00000.jsonl"]
    record = Manifest.read(tmp_path).shards[0]
    assert record["files"]["tokens-00000.npy"] == file_entry(tmp_path / "tokens-00000.npy")


def test_changes_wait_for_each_other_and_see_what_was_done(tmp_path, monkeypatch):
    """A removal between two steps of a compaction stays, and a build that begins there ends it."""
    for count in (3, 5, 9, 12, 30, 31):
        build(RUNTIME, STAMP, Colours(count), "colours", tmp_path)
    expected, merged, plain = held(tmp_path), [], maintain._merged

    def removing(files, store, group, number):
        merged.append(number)
        record = plain(files, store, group, number)
        if len(merged) == 1:
            other = threading.Thread(target=remove, args=(tmp_path, ["29"]))
            other.start()
            others.append(other)
            time.sleep(0.2)
            assert "29" not in Manifest.read(tmp_path).removed, "the removal waits"
        return record

    others: list[threading.Thread] = []
    monkeypatch.setattr(maintain, "_merged", removing)
    compact(tmp_path)
    others[0].join()
    del expected["29"]
    assert held(tmp_path) == expected and len(merged) > 1
    assert Manifest.read(tmp_path).removed == ("29",)


def test_a_build_that_began_stops_a_compaction_without_a_loss(tmp_path, monkeypatch):
    for count in (3, 5, 12, 25, 26):
        build(RUNTIME, STAMP, Colours(count), "colours", tmp_path)
    expected, plain = held(tmp_path), maintain._merged

    def beginning(*arguments):
        (tmp_path / "build.json").write_text("{}")
        return plain(*arguments)

    monkeypatch.setattr(maintain, "_merged", beginning)
    with pytest.raises(BadStore, match="a build is under way"):
        compact(tmp_path)
    assert held(tmp_path) == expected


def test_a_build_whose_index_was_changed_meanwhile_compares_again(tmp_path, monkeypatch):
    build(RUNTIME, STAMP, Colours(5), "colours", tmp_path)
    plain, compared = building.compare, []

    def compare(*arguments):
        changes = plain(*arguments)
        compared.append(len(changes.new))
        if len(compared) == 1:
            build(RUNTIME, STAMP, Colours(8), "colours", tmp_path)
        return changes

    monkeypatch.setattr(building, "compare", compare)
    report = build(RUNTIME, STAMP, Colours(9), "colours", tmp_path)
    assert report and report.new == ["08"] and compared == [4, 3, 1]
    assert len(held(tmp_path)) == 9


def test_other_metadata_do_not_go_on_with_a_build(tmp_path, monkeypatch):
    options = [BuildOptions(share=(part, 2)) for part in range(2)]
    assert build(RUNTIME, STAMP, Colours(8), "colours", tmp_path, options[0]) is None
    with pytest.raises(BadStore, match=r"of another kind \(metadata differ\)"):
        more = BuildOptions(share=(1, 2), metadata=("year",))
        build(RUNTIME, STAMP, Colours(8), "colours", tmp_path, more)
    assert build(RUNTIME, STAMP, Colours(8), "colours", tmp_path, options[1])


def test_a_file_that_was_deleted_while_it_grew_is_told(tmp_path):
    part = {"embeddings": np.zeros((1, 3), np.float32)}, [ImageRecord("a", "", [], (0, 0))], [b""]
    with ShardWriter(tmp_path, 0) as writer:
        writer.append(*part)
        (tmp_path / "embeddings-00000.npy.partial").unlink()
        with pytest.raises(FileNotFoundError, match="another process has deleted"):
            writer.append(*part)


def test_captions_of_images_are_numbered_in_one_go(tmp_path):
    class Many(Colours):
        def captions(self, index: int) -> list[str]:
            return [f"red {index} {i}" for i in range(index % 4)]

    build(RUNTIME, STAMP, Many(23), "colours", tmp_path)
    remove(tmp_path, ["03", "11"])
    store = Store(tmp_path)
    images = np.array([0, 1, 7, 2, 20])
    expected = [i for image in images for i, (own, _) in enumerate(store.captions) if own == image]
    assert store.captions_of(images).tolist() == expected
    assert store.captions_of(np.array([], np.int64)).tolist() == []
