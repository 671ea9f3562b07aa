"""The `blip:` and `folder:` sources, and SPECs: what they read and what they say of mistakes."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.data.images import BadImage
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.registry import EXAMPLES, NEED_SPLIT, open_source
from edje_jax.data.sources.shapes import Shapes

RED, BLUE = (255, 0, 0), (0, 0, 255)


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def write(path: Path, entries: object) -> Path:
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), "utf-8")
    return path


def colour_of(picture: Image.Image) -> tuple[int, ...]:
    assert picture.mode == "RGB"
    return tuple(int(c) for c in np.asarray(picture)[0, 0])


# --- blip -----------------------------------------------------------------------------------------


def test_blip_reads_pictures_ids_and_captions(tmp_path):
    paint(tmp_path / "a" / "red.png", RED)
    paint(tmp_path / "blue.png", BLUE)
    entries = [
        {"image": "a/red.png", "caption": "Ein rötliches Bild 🟥", "image_id": "r"},
        {"image": "blue.png", "caption": ["blue", "so blue"]},
        {"image": str(tmp_path / "a" / "red.png"), "caption": "absolute", "image_id": 7},
    ]
    source = BlipJson(write(tmp_path / "train.json", entries))
    assert len(source) == 3
    assert [source.image_id(i) for i in range(3)] == ["r", "blue.png", "7"]
    assert [source.captions(i) for i in range(3)] == [
        ("Ein rötliches Bild 🟥",), ("blue", "so blue"), ("absolute",)
    ]  # fmt: skip
    assert [colour_of(source.image(i)) for i in range(3)] == [RED, BLUE, RED]


def test_blip_pictures_may_stand_elsewhere(tmp_path, monkeypatch):
    paint(tmp_path / "pictures" / "a.png", BLUE)
    (tmp_path / "notes").mkdir()
    path = write(tmp_path / "notes" / "a.json", [{"image": "a.png", "caption": "x"}])
    assert colour_of(BlipJson(str(path), tmp_path / "pictures").image(0)) == BLUE
    monkeypatch.setenv("HOME", str(tmp_path))
    assert colour_of(BlipJson("~/notes/a.json", "~/pictures").image(0)) == BLUE
    monkeypatch.chdir(tmp_path / "pictures")
    write(tmp_path / "pictures" / "here.json", [{"image": "a.png", "caption": "x"}])
    assert colour_of(BlipJson("here.json").image(0)) == BLUE


def test_blip_merges_entries_of_one_picture(tmp_path):
    entries = [
        {"image": "b.jpg", "caption": "b1", "image_id": "B"},
        {"image": "a.jpg", "caption": "a1"},
        {"image": "b.jpg", "caption": ["b2", "b3"]},
        {"image": "copy-of-b.jpg", "caption": "b4", "image_id": "B"},
        {"image": "copy-of-b.jpg", "caption": "b5"},
        {"image": "a.jpg", "caption": "a1", "image_id": "A"},
        {"image": "c.jpg", "caption": "c1", "image_id": "A"},
    ]
    source = BlipJson(write(tmp_path / "x.json", entries))
    assert [source.image_id(i) for i in range(len(source))] == ["B", "a.jpg"]
    assert source.captions(0) == ("b1", "b2", "b3", "b4", "b5")
    assert source.captions(1) == ("a1", "a1", "c1")
    with pytest.raises(BadImage, match=r"b\.jpg: no such file"):
        source.image(0)


def test_blip_a_missing_picture_shows_on_reading_only(tmp_path):
    source = BlipJson(write(tmp_path / "x.json", [{"image": "gone.jpg", "caption": "x"}]))
    assert source.captions(0) == ("x",)
    with pytest.raises(BadImage, match=re.escape(str(tmp_path / "gone.jpg"))):
        source.image(0)


def test_blip_pickles_lean(tmp_path):
    entries = [
        {"image": f"{i:07d}.jpg", "caption": "a picture of a thing", "image_id": f"id_{i}"}
        for i in range(20_000)
    ]
    source = BlipJson(write(tmp_path / "x.json", entries))
    data = pickle.dumps(source)
    text = sum(len(e["image"] + e["caption"] + e["image_id"]) for e in entries)
    # Four offsets of eight bytes beside the text itself.
    assert len(data) < text + 33 * len(entries)
    copy = pickle.loads(data)
    assert len(copy) == 20_000
    assert (copy.image_id(19_999), copy.captions(123)) == ("id_19999", ("a picture of a thing",))


E1 = {"image": "1.jpg", "caption": "two dogs"}


@pytest.mark.parametrize(
    "entries, message",
    [
        ("", r"line 1, column 1: not valid JSON .*expected one list"),
        ('[\n{"image": "1.jpg",\n "caption" "x"}]', "line 3, column 12: not valid JSON"),
        ('{"image": "1.jpg", "caption": "x"}\n{"image": "2.jpg"}', "line 2, .*expected one list"),
        ({"images": [], "annotations": []}, "holds a JSON object, not a list; expected"),
        ("3", "holds a JSON number, not a list"),
        ([], "the list is empty; give at least one"),
        ([E1, "2.jpg"], "entry 1: a string, not an object; expected"),
        ([E1, {"caption": "x"}], 'entry 1: "image" is missing; give a picture file'),
        ([{"image": "", "caption": "x"}], "entry 0: \"image\" is ''; give a picture file"),
        ([{"image": 3, "caption": "x"}], 'entry 0: "image" is 3; give a picture file'),
        ([E1, E1, {"image": "2.jpg"}], 'entry 2: "caption" is missing; give a string or a list'),
        ([E1, {"image": "2.jpg", "caption": None}], 'entry 1: "caption" is None; give a string'),
        ([{"image": "2.jpg", "caption": 5}], 'entry 0: "caption" is 5; give a string'),
        ([{"image": "2.jpg", "caption": {"a": 1}}], 'entry 0: "caption" is {.*give a string'),
        ([{"image": "2.jpg", "caption": []}], r'entry 0: "caption" is \[\]; give a string'),
        ([{"image": "2.jpg", "caption": ["x", 5]}], 'entry 0: "caption" lists a number: 5; list'),
        ([{"image": "2.jpg", "caption": ""}], "entry 0: .*empty text; write one or drop"),
        ([{"image": "2.jpg", "caption": ["x", "  "]}], "entry 0: .*empty text"),
        ([{**E1, "image_id": True}], 'entry 0: "image_id" is True; give a string or a whole num'),
        ([{**E1, "image_id": ""}], "entry 0: \"image_id\" is ''; give"),
        ([{**E1, "image_id": ["a"]}], r'entry 0: "image_id" is \[.*; give'),
        (
            [{"url": "http://example.com/1.jpg", "caption": "x"}],
            r"entry 0: names a URL \(http://example.com/1.jpg\), not a file.*download the pictures",
        ),
        ([{"image": "https://example.com/1.jpg", "caption": "x"}], "entry 0: names a URL"),
        (
            [
                {"image": "1.jpg", "caption": "x", "image_id": "A"},
                {"image": "2.jpg", "caption": "x", "image_id": "B"},
                {"image": "1.jpg", "caption": "x", "image_id": "B"},
            ],
            'entry 2: "1.jpg" and image_id "B" belong to two different pictures',
        ),
    ],
)
def test_blip_mistakes_are_named(entries, message, tmp_path):
    path = write(tmp_path / "train.json", entries)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(path))}: {message}"):
        BlipJson(path)


def test_blip_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such file"):
        BlipJson(tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="a folder, not a JSON file; for its pictures use folder:"):
        BlipJson(tmp_path)
    (tmp_path / "latin.json").write_bytes('[{"image": "1.jpg", "caption": "é"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.json: not UTF-8 .*save it as UTF-8"):
        BlipJson(tmp_path / "latin.json")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([E1]).encode())
    assert BlipJson(tmp_path / "bom.json").captions(0) == ("two dogs",)


# --- folder ---------------------------------------------------------------------------------------


def test_folder_finds_every_picture_in_order(tmp_path):
    colours = {"b.PNG": RED, "a/z.jpg": BLUE, "a/b/c.webp": RED, "a-b.gif": BLUE, "Z.TIFF": RED}
    for name, colour in colours.items():
        paint(tmp_path / name, colour)
    for name in ("d.jpeg", "e.bmp", "f.tif"):
        paint(tmp_path / "more" / name, RED)
    for name in (".hidden.png", ".thumbs/x.png", "a/.git/y.jpg"):
        paint(tmp_path / name, RED)
    write(tmp_path / "notes.txt", "no picture")
    write(tmp_path / "png", "no extension")
    source = Folder(tmp_path)
    ids = [source.image_id(i) for i in range(len(source))]
    assert ids == [
        "Z.TIFF", "a-b.gif", "a/b/c.webp", "a/z.jpg", "b.PNG",
        "more/d.jpeg", "more/e.bmp", "more/f.tif",
    ]  # fmt: skip
    assert all(source.captions(i) == () for i in range(len(source)))
    near = np.array([colour_of(source.image(i)) for i in range(5)], int)
    assert np.abs(near - [colours[name] for name in ids[:5]]).max() < 8
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.image_id(i) for i in range(len(copy))] == ids


def test_folder_opens_with_broken_pictures_in_it(tmp_path, monkeypatch):
    write(tmp_path / "a.png", "no picture")
    paint(tmp_path / "b.png", RED)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    source = Folder(f"~/{tmp_path.name}")
    with pytest.raises(BadImage, match=r"a\.png: not a picture"):
        source.image(0)
    assert colour_of(source.image(1)) == RED


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        Folder(tmp_path / "nowhere")
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(ValueError, match=r"no picture in it or below \(1 passed over: 1 \.txt"):
        Folder(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"notes\.txt: a file; folder: takes a folder"):
        Folder(tmp_path / "notes.txt")


@pytest.mark.parametrize("index", [-1, 1, 99])
def test_an_index_outside_is_refused(index, tmp_path):
    paint(tmp_path / "a.png", RED)
    write(tmp_path / "a.json", [{"image": "a.png", "caption": "x"}])
    for source in (Folder(tmp_path), BlipJson(tmp_path / "a.json")):
        for read in (source.image, source.captions, source.image_id):
            with pytest.raises(IndexError, match=f"has 1 pictures, asked for {index}"):
                read(index)


def test_packed_strings_keep_every_string():
    texts = ["", "plain", "ü🟥", "nul\0byte", "lone \ud83d surrogate", "\udcff", ""]
    packed = PackedStrings(iter(texts))
    assert len(packed) == 7 and [packed[i] for i in range(7)] == texts
    assert len(PackedStrings([])) == 0
    with pytest.raises(IndexError, match="7 strings, asked for 7"):
        packed[7]


# --- SPECs ----------------------------------------------------------------------------------------


def test_specs_open_their_source(tmp_path):
    paint(tmp_path / "a.png", BLUE)
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "lists" / "a.json", [{"image": "a.png", "caption": "x"}])
    shapes = open_source("shapes:val", image_root="ignored", image_size=48)
    assert isinstance(shapes, Shapes) and shapes.split == "val"
    assert shapes.image(0).size == (48, 48)
    blip = open_source(f"blip:{path}", image_root=str(tmp_path), image_size=48)
    assert isinstance(blip, BlipJson) and colour_of(blip.image(0)) == BLUE
    assert blip.image(0).size == (6, 4)
    folder = open_source(f"folder:{tmp_path}")
    assert isinstance(folder, Folder) and folder.image_id(0) == "a.png"


def test_a_path_may_hold_a_hash_or_a_colon(tmp_path):
    paint(tmp_path / "C# : notes" / "a.png", BLUE)
    assert len(open_source(f"folder:{tmp_path / 'C# : notes'}")) == 1


@pytest.mark.parametrize(
    "spec, message",
    [
        ("train.json", '"train.json" names no kind; a SPEC is kind:path, such as shapes:train, '),
        ("", "names no kind"),
        ("shape:train", 'unknown kind "shape"; did you mean "shapes:train"\\?'),
        ("BLIP:x.json", 'did you mean "blip:x.json"'),
        ("foldr:/x", 'did you mean "folder:/x"'),
        ("zzz:x", r'"zzz:x": unknown kind "zzz"; Supported: shapes, blip, .*folder \(for example'),
        ("karpaty:x.json#test", 'did you mean "karpathy:x.json#test"'),
        ("karpathy:x.json", "which split\\? Write it as in karpathy:dataset_coco.json#test"),
        ("tfds:coco_captions", "which split"),
        ("tfds:#test", "names no path"),
        ("webdataset:x.tar#train", "webdataset has no splits"),
        ("blip:", "names no path; write it as in blip:train.json"),
        ("shapes:valid", "shapes:valid: no such split; there are train, val, test"),
        ("shapes:train#val", 'shapes has no splits, so "#val" .*name the split itself'),
        ("blip:x.json#train", 'blip has no splits, so "#train" after "x.json".*leave it out'),
        ("folder:/x#train", "folder has no splits"),
    ],
)
def test_mistaken_specs(spec, message):
    with pytest.raises(ValueError, match=message):
        open_source(spec)


def test_every_kind_has_an_example_and_an_opener(tmp_path):
    for kind, example in EXAMPLES.items():
        assert example.startswith(f"{kind}:")
    kinds = [kind for kind in EXAMPLES if kind != "shapes"]
    assert len(kinds) == 7
    for spec in (f"{kind}:/nowhere" + "#test" * (kind in NEED_SPLIT) for kind in kinds):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_source(spec)
