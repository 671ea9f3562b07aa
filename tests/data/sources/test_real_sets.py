"""Sets in other people's formats: the same scenes come out of each, and mistakes are named.

Covers data/sources/array_record.py, data/sources/karpathy.py, data/sources/matching.py,
data/sources/parquet.py, data/sources/tar_index.py, data/sources/tar_texts.py, data/sources/tfds.py
and data/sources/webdataset.py.
"""

import gzip
import io
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import DataConfig
from edje_jax.data.images import BadImage, file_bytes
from edje_jax.data.loader import RowRecipe, TrainingBatches
from edje_jax.data.pack import pack
from edje_jax.data.sources import array_record
from edje_jax.data.sources.matching import expand, matching_files
from edje_jax.data.sources.registry import open_captioned, open_source
from edje_jax.data.statistics import statistics
from edje_jax.data.text import BackboneTokenizer
from edje_jax.types import HasFiles, OnDisk, Source
from tests.real_sets import (
    COUNT,
    WRITERS,
    scenes,
    write_blip,
    write_every_format,
    write_tar,
    write_tfds,
)

ROOT = Path(__file__).parents[3]
KINDS = [*WRITERS, "arrayrecord"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    """{kind: SPEC} of the same scenes; to be read only."""
    return write_every_format(tmp_path_factory.mktemp("sets"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edje_jax"


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_scenes_come_out_of_every_format(kind, specs):
    opened = open_source(specs[kind])
    opened.image(5)
    # As a worker gets it, files that are open left behind.
    for source in (opened, pickle.loads(pickle.dumps(opened))):
        assert isinstance(source, Source) and isinstance(source, HasFiles)
        assert isinstance(source, OnDisk) == (kind in ("blip", "karpathy"))
        assert len(source) == COUNT
        by_id = {source.image_id(i): i for i in range(COUNT)}
        for scene in scenes():
            index = by_id[str(scene.number)]
            assert tuple(source.captions(index)) == scene.captions
            assert file_bytes(source, index) == scene.png
            assert source.image(index).mode == "RGB" and source.image(index).size == (64, 64)
    for read in (opened.image, opened.captions, opened.image_id):
        for index in (-1, COUNT):
            with pytest.raises(IndexError, match=str(index)):
                read(index)


def test_tfds_reads_by_name_without_tensorflow(specs):
    folder = Path(specs["tfds"].removeprefix("tfds:").removesuffix("#train")).parents[2]
    program = (
        "import sys; from edje_jax.data.sources.registry import open_source;"
        "source = open_source('tfds:coco_captions#train[:50%]'); source.image(3);"
        "print(len(source), source.image_id(3), 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == ["12", "3", "False"], done.stderr


def test_karpathy_splits(specs):
    file = specs["karpathy"].removesuffix("#train")
    assert len(open_source(f"{file}#restval")) == 8
    assert open_source(f"{file}#test").image_id(0) == "99"
    with pytest.raises(ValueError, match=r'no split "tset"; did you mean "#test"\?.*train \(16\)'):
        open_source(f"{file}#tset")


def test_karpathys_entries_are_metadata(specs):
    source = open_source(specs["karpathy"])
    assert source.metadata(1) == {
        "filepath": "val2014", "split": "train", "imgid": 1001, "cocoid": 1,
    }  # fmt: skip


def test_karpathy_images_may_stand_elsewhere(specs, tmp_path):
    file = Path(specs["karpathy"].removeprefix("karpathy:").removesuffix("#train"))
    (tmp_path / "x.json").write_bytes(file.read_bytes())
    spec = f"karpathy:{tmp_path / 'x.json'}#test"
    with pytest.raises(BadImage, match=re.escape(str(tmp_path / "val2014" / "0000.png"))):
        open_source(spec).image(0)
    assert open_source(spec, image_root=str(file.parent)).image(0).size == (64, 64)


def test_parquet_splits_and_rows_of_one_image(specs, tmp_path):
    whole = specs["parquet"].removesuffix("#train")
    assert open_source(f"{whole}#val").image_id(0) == "99"
    with pytest.raises(ValueError, match=r'"vall"; did you mean "#val"\? There are train, val$'):
        open_source(f"{whole}#vall")
    with pytest.raises(ValueError, match=r"which split\? Add #train, or another of train, val$"):
        open_source(whole)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    a, b, _ = (scene.png for scene in scenes(3))
    rows = {"jpg": [a, b, a, None], "text": ["one", "two", "three", " "], "key": [*"xyxz"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert [source.image_id(i) for i in range(3)] == ["a/x", "a/y", "a/z"]
    assert [source.captions(i) for i in range(3)] == [("one", "three"), ("two",), ()]
    assert file_bytes(source, 1) == b
    with pytest.raises(BadImage, match="holds no bytes of an image"):
        source.image(2)
    rows["key"] = [None, "y", None, None]
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(rows), tmp_path / name / "0000.parquet")
    source = open_source(f"parquet:{tmp_path}/*/0000.parquet")
    # What has no id is an image of its own.
    ids = [source.image_id(i) for i in range(len(source))]
    assert ids == [f"{name}/0000/{row}" for name in ("test", "train") for row in (0, "y", 2, 3)]
    # These names count images over all files; a missing one is NaN where pandas wrote it.
    rows["cocoid"] = [1.0, 2.0, float("nan"), float("nan")]
    for name in ("train", "test"):
        pq.write_table(pa.table(rows), tmp_path / name / "0000.parquet")
    source = open_source(f"parquet:{tmp_path}/*/0000.parquet")
    ids = [source.image_id(i) for i in range(len(source))]
    assert ids == [
        "1.0",
        "2.0",
        *(f"{name}/0000/{i}" for name in ("test", "train") for i in (2, 3)),
    ]


def test_further_columns_of_parquet_are_metadata(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = scenes(1)[0].png
    table = pa.table(
        {
            "image": [image] * 5,
            "caption": ["x"] * 5,
            "image_id": [*"abacd"],
            "split": ["train"] * 5,
            "year": pa.array([2010, None, 2011, 2012, 2013], pa.int16()),
            "license": pa.array(["cc0", "", None, "ccö", "cc0"]).dictionary_encode(),
            "score": pa.array([0.5, float("nan"), None, 1, 2], pa.float32()),
            "free": [True, False, None, None, None],
            "tags": [["a"]] * 5,
            "raw": [b"a"] * 5,
            "url": pa.array([*"vwxyz"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    source = open_source(f"parquet:{tmp_path}/a.parquet#train")
    train = {"split": "train"}
    assert [source.metadata(i) for i in range(4)] == [
        {"year": 2010, "license": "cc0", "score": 0.5, "free": True, "url": "v", **train},
        {"license": "", "free": False, "url": "w", **train},
        {"year": 2012, "license": "ccö", "score": 1.0, "url": "y", **train},
        {"year": 2013, "license": "cc0", "score": 2.0, "url": "z", **train},
    ]
    assert source.encoded(3) == image
    pq.write_table(table.select(["image", "caption"]), tmp_path / "b.parquet")
    assert open_source(f"parquet:{tmp_path}/b.parquet").metadata(1) == {}
    monkeypatch.setattr("edje_jax.data.sources.parquet._further", lambda *_: 1 / 0)
    with pytest.raises(BadImage, match=r"row 3 of .*a\.parquet: division"):
        source.metadata(2)


def test_parquet_columns_of_other_encodings(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = scenes(2)
    texts = pa.array([scene.captions for scene in made], pa.list_(pa.string(), 2))
    images = pa.array([scene.png for scene in made])
    for image, caption in (
        (images, texts),
        (images.dictionary_encode(), pa.array(["one", "two"]).dictionary_encode()),
    ):
        pq.write_table(pa.table({"image": image, "caption": caption}), tmp_path / "a.parquet")
        source = open_source(f"parquet:{tmp_path}/a.parquet")
        assert [file_bytes(source, i) for i in range(2)] == [scene.png for scene in made]
        assert source.captions(1) == (made[1].captions if caption is texts else ("two",))


def columns_of_today() -> dict[str, tuple[Any, Any]]:
    """{what: (column of images, column of captions)}; the captions are one uno, two, and none."""
    pa = pytest.importorskip("pyarrow")
    images, texts = [b"a", b"b", b"c"], [["one", "uno"], ["two"], None]
    plain = pa.array(images)
    found = {}
    for outer in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view):
        for inner in (pa.string(), pa.large_string(), pa.string_view(), pa.binary_view()):
            found[str(outer(inner))] = (plain, pa.array(texts, outer(inner)))
    captions = pa.array(texts)
    for kind in (pa.binary_view(), pa.large_binary(), pa.binary(1)):
        found[f"image {kind}"] = (pa.array(images, kind), captions)
        both = pa.struct([("bytes", kind), ("path", pa.string_view())])
        found[f"image {both}"] = (
            pa.array([{"bytes": x, "path": ""} for x in images], both),
            captions,
        )
    parts = [plain.dictionary_encode(), pa.array(["", "", ""]).dictionary_encode()]
    struct = pa.StructArray.from_arrays(parts, names=["bytes", "path"])
    coded = pa.array(["one", "uno", "two"]).dictionary_encode()
    starts = pa.array([0, 2, 3, 3], pa.int32())
    found["dictionaries inside"] = (struct, pa.ListArray.from_arrays(starts, coded))
    view = pa.struct([("raw", pa.list_(pa.string_view())), ("id", pa.list_(pa.int64()))])
    sentences = [{"raw": x, "id": [1]} for x in texts]
    found["struct of lists"] = (plain, pa.array(sentences, view))
    sentences = [x and [{"raw": y, "id": 1} for y in x] for x in texts]
    found["list of structs"] = (plain, pa.array(sentences))
    found["nested"] = (plain, pa.array([x and [{"raw": x}] for x in texts]))
    return found


def test_parquet_columns_as_the_tools_of_today_write_them(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for what, (image, caption) in columns_of_today().items():
        pq.write_table(pa.table({"image": image, "sentences": caption}), tmp_path / "a.parquet")
        source = open_source(f"parquet:{tmp_path}/a.parquet")
        captions = [source.captions(i) for i in range(3)]
        assert captions == [("one", "uno"), ("two",), ()], what
        assert [source.encoded(i) for i in range(3)] == [b"a", b"b", b"c"], what


def test_a_column_of_captions_may_hold_none_at_all(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    for values in ([None, None], [[], None], [[{"raw": None}], []]):
        table = pa.table({"image": [b"a", b"b"], "captions": values})
        pq.write_table(table, tmp_path / "a.parquet")
        source = open_source(f"parquet:{tmp_path}/a.parquet")
        assert [source.captions(i) for i in range(2)] == [(), ()], values


def test_rows_without_a_split_suggest_none(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    table = pa.table({"image": [b"a", b"b"], "text": ["one", "two"], "split": [None, "val"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"which split\? Add #val, or another of val$"):
        open_source(f"parquet:{tmp_path}/a.parquet")


@pytest.mark.parametrize("shape", ["texts", "bytes", "lists", "structs"])
def test_a_bad_text_of_a_table_is_one_bad_record(shape, tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    raw = pa.array([b"one", b"caf\xe9", b"three"])
    texts = raw if shape == "bytes" else raw.view(pa.string())
    if shape == "lists":
        texts = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    if shape == "structs":
        texts = pa.StructArray.from_arrays([texts], names=["raw"])
    table = {"image": [b"a", b"b", b"c"], "text": texts, "image_id": ["A", "B", None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert [source.captions(i) for i in range(3)] == [("one",), (), ("three",)]
    assert [source.image_id(i) for i in range(3)] == ["A", "B", "a/2"]
    assert not source.bad and [bool(source.caption_faults(i)) for i in range(3)] == [0, 1, 0]
    assert re.match(r".*a\.parquet: row 1: caption 0 holds .\\udce9", source.caption_faults(1))


def test_a_row_whose_id_is_no_text_is_left_out(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    ids = pa.array([b"A", b"caf\xe9", b" ", b""]).view(pa.string())
    table = {"image": [b"a", b"b", b"c", b"d"], "text": ["1", "2", "3", "4"], "image_id": ids}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert [source.image_id(i) for i in range(len(source))] == ["A", "a/3"]
    assert [bad.where.rpartition("/")[2] for bad in source.bad] == [
        f"a.parquet: row {i}" for i in (1, 2)
    ]
    assert "its id holds" in source.bad[0].reason and "its id is empty" in source.bad[1].reason


def test_a_table_without_a_single_caption_is_a_set_without_captions(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_table(pa.table({"image": [b"a"], "caption": [None]}), tmp_path / "a.parquet")
    assert open_source(f"parquet:{tmp_path}/a.parquet").captions(0) == ()


def test_a_table_may_name_files_instead_of_holding_them(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    (tmp_path / "a.png").write_bytes(b"image")
    paths = ["a.png", "b.png", "http://example.com/c.png", "\0", None]
    images = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": images, "text": ["x"] * 5}), tmp_path / "a.parquet")
    source = open_source(f"parquet:{tmp_path}/a.parquet")
    assert source.encoded(0) == b"image"
    for index, message in (
        (1, r"b\.png: no such file"), (2, "a URL is not fetched"), (3, "no bytes"), (4, "no bytes"),
    ):  # fmt: skip
        with pytest.raises(BadImage, match=message):
            source.encoded(index)


# --- tars -----------------------------------------------------------------------------------------


def tar_of_three(folder: Path) -> Path:
    """Captions in .txt, in .json, and one sample without an image; no ids."""
    folder.mkdir(parents=True, exist_ok=True)
    a, b, _ = (scene.png for scene in scenes(3))
    members = [
        ("x/1.png", a), ("x/1.txt", b" one \n"), ("x/1.json", b'{"caption": "else"}'),
        ("2.seg.png", b"passed over"), ("2.JPG", b), ("2.json", b'{"caption": ["two", "zwei"]}'),
        ("3.txt", b""),
    ]  # fmt: skip
    write_tar(folder / "a.b.tar", members)
    return folder / "a.b.tar"


def test_tars_have_captions_in_either_place_and_ids_of_their_own(tmp_path):
    tar_of_three(tmp_path / "cc3m")
    tar_of_three(tmp_path / "cc12m")
    source = open_source(f"webdataset:{tmp_path}/*/*.tar")
    captions = [source.captions(i) for i in range(6)]
    assert captions == [("one",), ("two", "zwei"), ()] * 2
    keys = ("x/1", "2", "3")
    sets = ("cc12m", "cc3m")
    assert [source.image_id(i) for i in range(6)] == [f"{s}/a.b/{k}" for s in sets for k in keys]
    assert file_bytes(source, 4) == scenes(2)[1].png
    with pytest.raises(BadImage, match=r"a\.b\.tar: 3: the sample has no image"):
        source.image(2)


def test_the_json_of_a_sample_is_metadata(tmp_path):
    image = scenes(1)[0].png
    facts = {"image_id": "A", "caption": "one", "width": 640, "similarity": 0.25, "exif": {"a": 1}}
    members = [
        ("1.png", image), ("1.json", json.dumps({**facts, "url": "http://a/ä"}).encode()),
        ("2.png", image), ("2.txt", b"two"),
        ("3.png", image), ("3.JSON", b'{"broken": '), ("3.txt", b"three"),
        ("4.png", image), ("4.json", json.dumps({**facts, "width": 1}).encode()),
        ("5.png", image), ("5.json", b'{"key": "5", "width": 5}'),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # With a new index, and with the one that was kept
        source = open_source(f"webdataset:{tmp_path}/a.tar")
        assert [source.metadata(i) for i in range(len(source))] == [
            {"width": 640, "similarity": 0.25, "url": "http://a/ä"},
            {},
            {},
            {"key": "5", "width": 5},
        ]
    assert "unreadable .json" in source.caption_faults(2)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BadImage, match=r"a\.tar: 1: cannot be read \(No such file"):
        source.metadata(0)
    assert source.metadata(1) == {}


def test_samples_of_one_image_id_are_one_image(tmp_path):
    a, b, _ = (scene.png for scene in scenes(3))
    for number, members in enumerate(
        (
            [("1.png", a), ("1.json", b'{"image_id": "A", "caption": "one"}')],
            [("2.png", b), ("2.txt", b"two")],
            [("3.png", a), ("3.json", b'{"image_id": "A"}'), ("3.txt", b"three")],
        )
    ):
        write_tar(tmp_path / f"{number}.tar", members)
    source = open_source(f"webdataset:{tmp_path}/{{0..2}}.tar")
    assert [source.image_id(i) for i in range(len(source))] == ["A", "1/2"]
    assert [source.captions(i) for i in range(2)] == [("one", "three"), ("two",)]
    assert [file_bytes(source, i) for i in range(2)] == [a, b]


def test_an_index_is_kept_and_made_anew_when_stale_or_damaged(tmp_path, caplog, monkeypatch):
    tar = tar_of_three(tmp_path)
    spec, index = f"webdataset:{tar}", Path(f"{tar}.index.npz")
    open_source(spec)
    kept = index.read_bytes()
    made = index.stat().st_mtime_ns
    open_source(spec)
    assert index.stat().st_mtime_ns == made and not caplog.text
    for damaged in (kept[:100], b"", kept.replace(b"two", b"owt"), b"no zip"):
        index.write_bytes(damaged)
        assert open_source(spec).captions(1) == ("two", "zwei")
        assert f"{index}: damaged" in caplog.text and index.read_bytes() == kept
        caplog.clear()
    arrays = dict(np.load(index))
    for name, values in (
        ("starts", arrays["starts"][:-1]), ("size", arrays["size"][1:]), ("tar", np.array(3)),
    ):  # fmt: skip
        np.savez(index, **{**arrays, name: values})
        assert open_source(spec).captions(1) == ("two", "zwei")
        assert f"{index}: damaged" in caplog.text
        caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr("edje_jax.data.sources.tar_index.VERSION", 99)
        open_source(spec)
    assert f"{index}: written by another version; made anew" in caplog.text
    open_source(spec)
    write_tar(tar, [("9.jpg", b"x"), ("9.txt", b"nine")])
    assert open_source(spec).captions(0) == ("nine",)
    assert f"{index}: the tar has changed since; made anew" in caplog.text


def test_where_nothing_can_be_written_the_index_lies_in_the_cache(tmp_path, cache, monkeypatch):
    tar = tar_of_three(tmp_path / "tars")
    monkeypatch.setattr("edje_jax.data.sources.tar_index.atomic_path", refusing(tar.parent))
    assert len(open_source(f"webdataset:{tar}")) == 3
    assert [path.name for path in tar.parent.iterdir()] == [tar.name]
    (kept,) = (cache / "tars").iterdir()
    made = kept.stat().st_mtime_ns
    assert len(open_source(f"webdataset:{tar}")) == 3 and kept.stat().st_mtime_ns == made


def test_a_stale_index_in_a_read_only_folder_does_not_hide_the_kept_one(tmp_path, monkeypatch):
    tar = tar_of_three(tmp_path / "tars")
    open_source(f"webdataset:{tar}")
    write_tar(tar, [("9.jpg", b"x"), ("9.txt", b"nine")])
    with monkeypatch.context() as patch:
        patch.setattr("edje_jax.data.sources.tar_index.atomic_path", refusing(tar.parent))
        open_source(f"webdataset:{tar}")
    monkeypatch.setattr("edje_jax.data.sources.tar_index.build", None)
    assert open_source(f"webdataset:{tar}").captions(0) == ("nine",)


def refusing(folder: Path):
    """`atomic_path` of a folder that is read-only, as permissions stop no superuser."""
    from edje_jax.system.files import atomic_path

    def guarded(path: Path):
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return atomic_path(path)

    return guarded


def test_broken_tars_are_named(tmp_path):
    tar = tar_of_three(tmp_path)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1800])
    with pytest.raises(ValueError, match=r"a\.b\.tar: not a whole tar .*bytes in\); download"):
        open_source(f"webdataset:{tar}")
    write_tar(tar, [])
    with pytest.raises(ValueError, match="no sample in these tars"):
        open_source(f"webdataset:{tar}")
    tar.write_bytes(b"no tar at all" * 100)
    with pytest.raises(ValueError, match="not a whole tar"):
        open_source(f"webdataset:{tar}")


@pytest.mark.parametrize(
    "members, captions, message",
    [
        (
            [("1.txt", b"x"), ("1.jpg", b"y")],
            ("x",),
            r"two members 1\.jpg, of which one is dropped",
        ),
        ([("1.txt", b"x"), ("1.json", b"{")], ("x",), r"unreadable \.json \(Expecting"),
        ([("1.txt", b"x"), ("1.json", b"[" * 99_999)], ("x",), r"unreadable \.json \(maximum rec"),
        ([("1.json", b"[]")], (), r"unreadable \.json \(not an object\)"),
        ([("1.txt", b"caf\xe9")], (), r"caption 0 holds .\\udce9., .*a byte that is not UTF-8"),
        ([("1.txt", b"\xff\xfex")], (), r"unreadable \.txt \(.*truncated data"),
        (
            [("1.json", b'{"caption": ["a", null, "\\ud83d"]}')],
            ("a",),
            "1 is a null .*; caption 2 ho",
        ),
        ([("1.json", b'{"image_id": "\\ud83d", "caption": "a"}')], ("a",), '"image_id" holds'),
        ([("1.txt", b" "), ("1.json", b'{"caption": 5}')], (), r"caption 0 is a number \(5\)"),
        ([("1.txt", b"x" * 100_001)], (), "caption 0 has 100,001 characters"),
    ],
)
def test_a_bad_text_of_a_tar_is_one_bad_record(members, captions, message, tmp_path):
    members = [("0.jpg", b"x"), ("0.txt", b"zero"), ("1.jpg", b"x"), *members]
    write_tar(tmp_path / "a.tar", members)
    for _ in range(2):  # From the tar, and from its index
        source = open_source(f"webdataset:{tmp_path}/a.tar")
        assert [source.captions(i) for i in range(len(source))] == [("zero",), captions]
        assert [source.image_id(i) for i in range(2)] == ["a/0", "a/1"] and not source.bad
        assert not source.caption_faults(0)
        assert re.match(
            rf"{re.escape(str(tmp_path))}/a\.tar: 1: .*{message}", source.caption_faults(1)
        )


def test_texts_of_a_tar_are_read_as_their_byte_order_mark_says(tmp_path):
    facts = '{"caption": "ein für zwei"}'
    write_tar(
        tmp_path / "a.tar",
        [("0.jpg", b"x"), ("0.txt", "für".encode("utf-16")), ("1.jpg", b"x"),
         ("1.json", facts.encode("utf-8-sig"))],
    )  # fmt: skip
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert [source.captions(i) for i in range(2)] == [("für",), ("ein für zwei",)]


def test_keys_end_at_the_first_dot_unless_all_names_have_more(tmp_path):
    names = [
        "a.b.jpg",
        "a.b.txt",
        "a.B.C.jpg",
        "2.jpg",
        "2.seg.png",
        "2.txt",
        "d.e/x.jpg",
        "d.e/x.txt",
    ]
    write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names])
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert [source.image_id(i) for i in range(len(source))] == [
        "a/a.b",
        "a/a.B.C",
        "a/2",
        "a/d.e/x",
    ]
    captions = [source.captions(i) for i in range(4)]
    assert captions == [("a.b.txt",), (), ("2.txt",), ("d.e/x.txt",)]
    assert [source.encoded(i) for i in range(4)] == [
        b"a.b.jpg",
        b"a.B.C.jpg",
        b"2.jpg",
        b"d.e/x.jpg",
    ]


def test_a_member_name_that_is_not_utf8_gives_a_printable_id(tmp_path):
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
    ) as tar:
        info = tarfile.TarInfo("café.jpg")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert source.image_id(0) == r"a/caf\udce9" and source.encoded(0) == b"x"


@pytest.mark.parametrize("cut", [512, 700, 1024, 1500, 1536, 2000, 2048, 2100, 2560, 3000])
def test_a_tar_cut_anywhere_is_no_set(cut, tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("1.jpg", b"x"), ("1.txt", b"one"), ("2.jpg", b"y")])
    whole = path.read_bytes()
    assert any(whole[2048:2560]) and not any(whole[3072:])
    path.write_bytes(whole[:cut])
    with pytest.raises(ValueError, match=r"a\.tar: not a whole tar"):
        open_source(f"webdataset:{path}")


def test_a_tar_with_a_smashed_header_in_its_middle_is_no_set(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, [("1.jpg", b"x"), ("1.txt", b"one"), ("2.jpg", b"y")])
    whole = path.read_bytes()
    for smashed in (b"\xff" * 512, bytes(512)):
        path.write_bytes(whole[:1024] + smashed + whole[1536:])
        with pytest.raises(ValueError, match=r"not a whole tar \(a broken header, 1,024 bytes in"):
            open_source(f"webdataset:{path}")
    # Some writers close with fewer zeros than others.
    for end in (3072 + 512, 3072 + 1024, len(whole)):
        path.write_bytes(whole[:end])
        assert len(open_source(f"webdataset:{path}")) == 2
    path.write_bytes(gzip.compress(whole))
    with pytest.raises(ValueError, match="compressed; gunzip it first"):
        open_source(f"webdataset:{path}")


@pytest.mark.parametrize("caption", ["NaN", "5", "true", "null", '{"en": "x"}', '""', "[5, null]"])
def test_what_is_no_text_is_no_caption(caption, tmp_path):
    told = f'{{"caption": {caption}, "image_id": NaN}}'.encode()
    write_tar(tmp_path / "a.tar", [("1.jpg", b"x"), ("1.json", told), ("2.jpg", b"y")])
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert source.captions(0) == () and source.image_id(0) == "a/1"


def test_an_empty_txt_leaves_the_caption_to_the_json(tmp_path):
    members = [("1.jpg", b"x"), ("1.txt", b" \n"), ("1.json", b'{"caption": "one"}')]
    write_tar(tmp_path / "a.tar", members)
    assert open_source(f"webdataset:{tmp_path}/a.tar").captions(0) == ("one",)


def test_keys_of_one_image_of_img2dataset_are_one(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    facts = (
        {"sha256": "5f", "url": "http://a/1", "caption": "one"},
        {"sha256": "5f", "url": "http://b/1", "caption": "two"},
        {"sha256": "", "url": "http://c/2", "caption": "three"},
        {"url": "http://c/2", "caption": "four", "image_id": None},
        {"sha256": "5f", "image_id": 7, "caption": "five"},
    )
    members = [
        member
        for key, told in enumerate(facts)
        for member in ((f"{key}.jpg", b"x"), (f"{key}.json", json.dumps(told).encode()))
    ]
    write_tar(tmp_path / "a.tar", members)
    source = open_source(f"webdataset:{tmp_path}/a.tar")
    assert [source.image_id(i) for i in range(len(source))] == ["5f", "http://c/2", "7"]
    assert [source.captions(i) for i in range(2)] == [("one", "two"), ("three", "four")]
    assert "5 rows are 3 images" in caplog.text


def test_a_tar_cut_short_after_it_was_opened_is_a_bad_image(tmp_path):
    tar = tar_of_three(tmp_path)
    source = open_source(f"webdataset:{tar}")
    tar.write_bytes(tar.read_bytes()[:600])
    with pytest.raises(BadImage, match="the tar ends within the image"):
        source.image(0)
    tar.unlink()
    with pytest.raises(BadImage, match="cannot be read"):
        source.image(0)


# --- packs ----------------------------------------------------------------------------------------


def test_a_pack_with_a_missing_or_damaged_shard_is_no_set(specs, tmp_path):
    folder = Path(specs["arrayrecord"].removeprefix("arrayrecord:")).parent
    shards = sorted(folder.glob("*.array_record"))
    assert len(shards) == 3
    for shard in shards[:2]:
        (tmp_path / shard.name).write_bytes(shard.read_bytes())
    spec = f"arrayrecord:{tmp_path}/*.array_record"
    with pytest.raises(FileNotFoundError, match="1 of 3 shards are not there, first number 2"):
        open_source(spec)
    (tmp_path / shards[2].name).write_bytes(shards[2].read_bytes()[:-9000])
    with pytest.raises(ValueError, match=r"not a whole file of edje data pack"):
        open_source(spec)
    (tmp_path / shards[2].name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a whole file of edje data pack"):
        open_source(spec)
    tfds = next(Path(specs["tfds"].removeprefix("tfds:").removesuffix("#train")).glob("*record*"))
    with pytest.raises(ValueError, match="are read by tfds:"):
        open_source(f"arrayrecord:{tfds}")


def test_packs_of_two_sets_whose_ids_collide_are_no_one_set(tmp_path):
    made = scenes(4)
    for name, part in (("a", made[:2]), ("b", [made[3]._replace(number=1), made[2]])):
        pack(open_source(write_blip(tmp_path / f"of_{name}", part)), tmp_path / name)
    with pytest.raises(ValueError, match=r'id "1" stands in .*join the packs with \+'):
        open_source(f"arrayrecord:{tmp_path}/{{a,b}}/*.array_record")
    joined = "+".join(f"arrayrecord:{tmp_path}/{name}/*.array_record" for name in "ab")
    assert len(open_source(joined)) == 4


def test_a_bad_entry_of_a_pack_is_one_bad_record(tmp_path):
    """Packs of earlier versions hold half surrogate pairs."""
    writer = pytest.importorskip("array_record.python.array_record_module").ArrayRecordWriter
    images = [
        {"id": "A", "captions": ["one", "\ud83d"]}, {"id": "\ud83d", "captions": ["x"]}, 5,
        {"id": "D", "captions": "four"},
    ]  # fmt: skip
    table = {"format": "edje_jax pictures", "version": 1, "shard": 0, "shards": 1, "set": "s"}
    path = tmp_path / "pictures-00000-of-00001.array_record"

    def write(**changes: Any) -> None:
        written = writer(str(path), "group_size:1,uncompressed")
        for name in "abcd":
            written.write(name.encode())
        told = {**table, "pictures": images, "rejected": [], **changes}
        written.write(json.dumps(told).encode())
        written.close()

    write()
    source = open_source(f"arrayrecord:{path}")
    found = [(source.image_id(i), source.captions(i), source.encoded(i)) for i in range(2)]
    assert len(source) == 2 and found == [("A", ("one",), b"a"), ("D", ("four",), b"d")]
    assert [bad.where for bad in source.bad] == [f"{path}: image {i}" for i in (1, 2)]
    assert source.caption_faults(0).startswith(f"{path}: image 0: caption 1 holds")
    for changes in ({"shards": "1"}, {"pictures": 5}, {"set": None}, {"rejected": {}}):
        write(**changes)
        with pytest.raises(ValueError, match="not a whole file of edje data pack"):
            open_source(f"arrayrecord:{path}")
    write(shards=10**9)
    with pytest.raises(FileNotFoundError, match="999999999 of 1000000000 shards are not there"):
        open_source(f"arrayrecord:{path}")


def test_opening_a_pack_leaves_no_file_open(specs):
    array_record._opened.cache_clear()
    source = open_source(specs["arrayrecord"])
    assert not array_record._opened.cache_info().currsize
    source.image(0)
    assert array_record._opened.cache_info().currsize == 1


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_more_files_than_a_process_may_open_are_a_set(kind, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for number in range(100):
        table = pa.table({"image": [scenes(1)[0].png], "caption": [f"dog {number}"]})
        pq.write_table(table, tmp_path / f"{number:02d}.parquet")
    spec = f"parquet:{tmp_path}/*.parquet"
    if kind == "arrayrecord":
        pack(open_source(spec), tmp_path, shard_size=1)
        spec = f"arrayrecord:{tmp_path}/*.array_record"
    program = (
        "from edje_jax.data.sources.registry import open_source\n"
        f"source = open_source({spec!r})\n"
        "print(len([source.encoded(i) for i in range(len(source))]))"
    )
    command = f'ulimit -n 64 && exec "{sys.executable}" -c "$0"'
    done = subprocess.run(
        ["bash", "-c", command, program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip() == "100", done.stderr


# --- mistakes -------------------------------------------------------------------------------------


def image(**changes) -> dict:
    entry = {"filename": "1.jpg", "split": "test", "sentences": [{"raw": "x"}], "imgid": 1}
    return {key: value for key, value in {**entry, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ([{"image": "1.jpg", "caption": "x"}], 'no list "images" in it.*read by blip:'),
        ({"images": {}}, 'no list "images"'),
        ({"images": ["1.jpg"]}, 'no split "test"; There are none. .*image 0: no "split"'),
        ({"images": [image(filename=None)]}, "none of 1 records can be used; .*image 0: "),
        ({"images": []}, 'no split "test"; There are none'),
    ],
)
def test_karpathy_mistakes(content, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(path))}: .*{message}"):
        open_source(f"karpathy:{path}#test")


@pytest.mark.parametrize(
    "entry, message",
    [
        ("2.jpg", 'no "split"'),
        (image(split=5), 'no "split"'),
        (image(filename=None), '"filename" or "filepath" is a null .*expected'),
        (image(filepath=5), '"filename" or "filepath" is a number'),
        (image(filename="a\0"), '"filename" or "filepath" holds a NUL'),
        (image(filename="2.jpg"), 'id "1" is given to 1.jpg too; correct one'),
        (image(cocoid={}), '"cocoid" is an object'),
    ],
)
def test_a_bad_entry_of_karpathys_file_is_one_bad_record(entry, message, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [image(), entry, image(imgid=2)]}))
    source = open_source(f"karpathy:{path}#test")
    assert [source.image_id(i) for i in range(len(source))] == ["1", "2"]
    assert open_source(f"karpathy:{path}#test#lines").captions(1) == ("x",)
    (bad,) = source.bad
    assert bad.where == f"{path}: image 1" and re.match(message, bad.reason)


@pytest.mark.parametrize(
    "sentences, kept, message",
    [
        (None, (), 'no "sentences" with "raw"'),
        ([], (), 'no "sentences" with "raw"'),
        (["x"], (), "caption 0 is a null"),
        ([{"raw": " "}, {"raw": "x"}, {}], ("x",), "caption 0 is empty; caption 2 is a null"),
        ([{"raw": "x"}, {"raw": "\ud83d"}], ("x",), "caption 1 holds"),
    ],
)
def test_a_bad_sentence_leaves_the_image_its_others(sentences, kept, message, tmp_path):
    path = tmp_path / "x.json"
    entries = [image(), image(imgid=None, cocoid=2, sentences=sentences)]
    path.write_text("\n".join(map(json.dumps, entries)))  # As JSON Lines
    source = open_source(f"karpathy:{path}#test")
    assert not source.bad and [source.captions(i) for i in range(2)] == [("x",), kept]
    assert source.caption_faults(1).startswith(f"{path}: image 1: {message}")
    path.write_text(json.dumps(image()))  # One line
    assert len(open_source(f"karpathy:{path}#test")) == 1


def test_parquet_mistakes(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    for table, message in (
        (
            {"image": [b"x"], "label": [3]},
            r"no column of captions .*looked for .*label \(in",
        ),
        ({"url": ["x"], "caption": ["y"]}, r"no column of images .*url \(string\).*Rename"),
        ({"image": pa.array([], pa.binary()), "text": pa.array([], pa.string())}, "have no row"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(ValueError, match=message):
            open_source(f"parquet:{path}")
    pq.write_table(pa.table({"image": [b"x"], "caption": ["y"]}), path)
    with pytest.raises(ValueError, match='no column "split" to look for "test"'):
        open_source(f"parquet:{path}#test")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        open_source(f"parquet:{path}")


def test_tfds_mistakes(specs, tmp_path, monkeypatch):
    spec = specs["tfds"].removesuffix("#train")
    with pytest.raises(ValueError, match=r'no split "trian"; did you mean "#train"\?'):
        open_source(f"{spec}#trian")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"(?s)no such set below {tmp_path}.*tfds build"):
        open_source("tfds:coco_captions#train")
    folder = Path(spec.removeprefix("tfds:"))
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    features = json.loads((copy / "features.json").read_text())
    del features["featuresDict"]["features"]["captions"]
    (copy / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"needs an image and captions; its features are .*image"):
        open_source(f"tfds:{copy}#train")
    told = (copy / "dataset_info.json").read_text()
    (copy / "dataset_info.json").write_text(told.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"kept as tfrecord.*--file_format=array_record"):
        open_source(f"tfds:{copy}#train")


def test_a_damaged_shard_of_tfds_makes_bad_images(specs, tmp_path):
    folder = Path(specs["tfds"].removeprefix("tfds:").removesuffix("#train"))
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        if "array_record" in path.name:
            content[200:20_000] = bytes(19_800)
        (tmp_path / path.name).write_bytes(content)
    source = open_source(f"tfds:{tmp_path}#train")
    with pytest.raises(BadImage, match=r"#train: record 0 cannot be read"):
        source.image(0)
    # Neither counting nor training ends there.
    assert (source.image_id(0), source.captions(0)) == ("train/0", ())
    found = statistics(source)
    assert found.images == COUNT and "record 0 cannot be read" in found.bad["train/0"]
    tokenizer = BackboneTokenizer(ROOT / "tests" / "goldens" / "reference_tiny" / "siglip", 16)
    recipe = RowRecipe(ImageRecipe(size=8), tokenizer)
    data = DataConfig(batch_size=COUNT)
    batch, bad = TrainingBatches(source, recipe, data, seed=0, steps=1)[0]
    assert bad.keys() == found.bad.keys() and batch.valid.sum() == COUNT - len(bad)
    assert "record 0 cannot be read" in bad["train/0"]


def test_a_bad_caption_of_tfds_is_bad_when_it_is_read(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    made = scenes(2)
    made[1] = made[1]._replace(captions=("fine", b"caf\xe9", " "))
    source = open_source(write_tfds(tmp_path, made))
    assert source.captions(0) == made[0].captions and source.captions(1) == ("fine",)
    assert not source.bad and not source.caption_faults(0)
    assert re.search(
        r"#train: record 1: caption 1 holds .*; caption 2 is", source.caption_faults(1)
    )


def test_a_damaged_description_of_tfds_is_named(specs, tmp_path):
    folder = Path(specs["tfds"].removeprefix("tfds:").removesuffix("#train"))
    for name in ("features.json", "dataset_info.json"):
        copy = tmp_path / name.partition(".")[0]
        shutil.copytree(folder, copy)
        (copy / name).write_text("{")
        with pytest.raises(ValueError, match=f"{copy}: not a whole set .*prepare it anew"):
            open_source(f"tfds:{copy}#train")
    with pytest.raises(ValueError, match=r"#train\[:x\]: cannot be read"):
        open_source(f"tfds:{folder}#train[:x]")


def test_a_karpathy_image_without_a_folder(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{**image(), "filepath": None}]}))
    assert open_source(f"karpathy:{path}#test").path(0) == str(tmp_path / "1.jpg")


def test_lists_of_urls_are_explained(tmp_path):
    path = tmp_path / "cc3m.json"
    path.write_text(json.dumps([{"url": "http://example.com/1.jpg", "caption": "x"}]))
    with pytest.raises(ValueError, match=r"img2dataset downloads into tars, which webdataset:"):
        open_source(f"blip:{path}")


def test_a_set_without_captions_trains_nothing(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", scenes(1)[0].png)])
    assert len(open_source(f"webdataset:{tmp_path}/a.tar")) == 1
    with pytest.raises(ValueError, match="no captions in this set"):
        open_captioned(f"webdataset:{tmp_path}/a.tar")


# --- patterns -------------------------------------------------------------------------------------


def test_patterns(tmp_path):
    assert expand("{8..10}-{a,bc}{x}") == [f"{n}-{c}{{x}}" for n in (8, 9, 10) for c in ("a", "bc")]
    assert expand("{098..101}") == ["098", "099", "100", "101"]
    for name in ("00.tar", "01.tar", "02.tar", "[odd].tar"):
        (tmp_path / name).touch()
    for name in ("00.tar.index.npz", "00.parquet.tmp", "00_stats.json", "00.parquet"):
        (tmp_path / "others" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "others" / name).touch()
    for pattern, names in (
        ("0{2,0,2}.tar", ["02.tar", "00.tar"]),
        ("*.tar", ["00.tar", "01.tar", "02.tar", "[odd].tar"]),
        ("[odd].tar", ["[odd].tar"]),
        # Of what a wildcard fits, what it is for; failing that, what is not ours.
        ("{*,others/*.parquet}", ["00.tar", "01.tar", "02.tar", "[odd].tar", "00.parquet"]),
        ("others/*", ["00.parquet", "00_stats.json"]),
    ):
        assert [Path(p).name for p in matching_files(f"{tmp_path}/{pattern}", ".tar")] == names
    for pattern, message in (
        ("{00..03}.tar", r"03\.tar \(of .*/\{00\.\.03\}\.tar\): no such file"),
        ("*.parquet", r"\*\.parquet: no such file"),
        ("others/*.npz", r"others/\*\.npz: no such file"),
        ("", r"a folder; name the files in it, as in .*/\*\.tar"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            matching_files(f"{tmp_path}/{pattern}", ".tar")
    with pytest.raises(ValueError, match=r"cannot be looked through .*download others first"):
        matching_files("https://example.com/{00..03}.tar", ".tar")
    with pytest.raises(ValueError, match=r"\{3\.\.1\}: an empty range"):
        matching_files(f"{tmp_path}/{{3..1}}.tar", ".tar")


def test_a_wildcard_works_a_second_time(specs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tar_of_three(tmp_path)
    (tmp_path / "a.b_stats.json").write_text("{}")
    for _ in range(2):
        assert len(open_source(f"webdataset:{tmp_path}/*")) == 3
    assert "2 files that do not end in .tar passed over" in caplog.text
    folder = Path(specs["arrayrecord"].removeprefix("arrayrecord:")).parent
    for file in folder.glob("*.array_record"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "rejected.csv").write_text("id,reason\n")
    assert len(open_source(f"arrayrecord:{tmp_path}/*")) == COUNT
