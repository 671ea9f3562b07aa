"""The `blip:` and `folder:` sources, and SPECs: what they read and what they say of mistakes.

Covers data/sources/blip_json.py, data/sources/captioned.py, data/sources/folder.py,
data/sources/packed.py, data/sources/registry.py and data/sources/texts.py.
"""

import io
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.data.images import BadImage
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.data.sources.captioned import Captioned, pack_captions
from edje_jax.data.sources.folder import Folder
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.data.sources.registry import KINDS, Kind, Location, open_source
from edje_jax.scenes.shapes import Shapes
from edje_jax.types import Described

RED, BLUE = (255, 0, 0), (0, 0, 255)


def paint(path: Path, colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)


def write(path: Path, entries: object) -> Path:
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries), "utf-8")
    return path


def colour_of(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return tuple(int(c) for c in np.asarray(image)[0, 0])


# --- blip -----------------------------------------------------------------------------------------


def test_blip_reads_images_ids_and_captions(tmp_path):
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


def test_blip_images_may_stand_elsewhere(tmp_path, monkeypatch):
    paint(tmp_path / "images" / "a.png", BLUE)
    (tmp_path / "notes").mkdir()
    path = write(tmp_path / "notes" / "a.json", [{"image": "a.png", "caption": "x"}])
    assert colour_of(BlipJson(str(path), tmp_path / "images").image(0)) == BLUE
    monkeypatch.setenv("HOME", str(tmp_path))
    assert colour_of(BlipJson("~/notes/a.json", "~/images").image(0)) == BLUE
    monkeypatch.chdir(tmp_path / "images")
    write(tmp_path / "images" / "here.json", [{"image": "a.png", "caption": "x"}])
    assert colour_of(BlipJson("here.json").image(0)) == BLUE


def test_blip_merges_entries_of_one_image(tmp_path):
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


def test_further_keys_of_an_entry_are_metadata(tmp_path):
    entries = [
        {"image": "a.jpg", "caption": "x", "image_id": 7, "video": "v", "year": 2010, "free": True},
        {"image": "b.jpg", "caption": ["x"], "license": "", "size": 0.5, "n": 10**400},
        {"image": "a.jpg", "caption": "y", "year": 2011, "license": "cc0"},
        {"image": "c.jpg", "caption": "x", "tags": ["a"], "who": {"a": 1}, "none": None},
        {"image": "d.jpg", "caption": "x", "place": "Zürich \ud800", "score": float("nan")},
    ]
    source = BlipJson(write(tmp_path / "x.json", entries))
    assert isinstance(source, Described)
    for each in (source, pickle.loads(pickle.dumps(source))):
        # Of two entries of one image, the first counts.
        assert each.metadata(0) == {"year": 2010, "free": True}
        assert each.metadata(0)["free"] is True
        assert each.metadata(1) == {"license": "", "size": 0.5, "n": 10**400}
        assert each.metadata(2) == {}
        assert each.metadata(3) == {"place": "Zürich \ud800"}
    with pytest.raises(IndexError):
        source.metadata(4)
    assert BlipJson(write(tmp_path / "y.json", [E1])).metadata(0) == {}


def test_blip_a_missing_image_shows_on_reading_only(tmp_path):
    source = BlipJson(write(tmp_path / "x.json", [{"image": "gone.jpg", "caption": "x"}]))
    assert source.captions(0) == ("x",)
    with pytest.raises(BadImage, match=re.escape(str(tmp_path / "gone.jpg"))):
        source.image(0)


def test_blip_pickles_lean(tmp_path):
    entries = [
        {"image": f"{i:07d}.jpg", "caption": "an image of a thing", "image_id": f"id_{i}"}
        for i in range(20_000)
    ]
    source = BlipJson(write(tmp_path / "x.json", entries))
    data = pickle.dumps(source)
    text = sum(len(e["image"] + e["caption"] + e["image_id"]) for e in entries)
    # Four offsets of eight bytes beside the text itself.
    assert len(data) < text + 33 * len(entries)
    copy = pickle.loads(data)
    assert len(copy) == 20_000
    assert (copy.image_id(19_999), copy.captions(123)) == ("id_19999", ("an image of a thing",))


E1 = {"image": "1.jpg", "caption": "two dogs"}


@pytest.mark.parametrize(
    "entries, message",
    [
        ("", r"line 1, column 1: not valid JSON .*expected one list"),
        ('[\n{"image": "1.jpg",\n "caption" "x"}]', "line 3, column 12: not valid JSON"),
        ('[{"image": "1.jpg", "caption": "x"},\n{"image": "2.jpg"', "line 2, .*expected one list"),
        ("[" * 100_000, "nested too deeply; expected one list"),
        ({"images": [], "annotations": []}, "holds a JSON object, not a list; expected"),
        ("3", "holds a JSON number, not a list"),
        ([], "the list is empty; give at least one"),
        (["1.jpg", 3], "none of 2 records can be used; .*entry 0: a string, not an object; exp"),
    ],
)
def test_blip_files_that_are_no_list_are_named(entries, message, tmp_path):
    path = write(tmp_path / "train.json", entries)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(path))}: {message}"):
        BlipJson(path)


@pytest.mark.parametrize(
    "entry, message",
    [
        ("2.jpg", "a string, not an object; expected"),
        (None, "a null, not an object"),
        ({"caption": "x"}, '"image" is missing; give an image file'),
        ({"image": "", "caption": "x"}, '"image" is empty; give an image file'),
        ({"image": 3, "caption": "x"}, r'"image" is a number \(3\), not a text; give an image'),
        ({"image": "a\0.jpg", "caption": "x"}, '"image" holds a NUL; give an image file'),
        ({"image": "a\ud83d.jpg", "caption": "x"}, r'"image" holds .\\ud83d., half of a surrog'),
        ({**E1, "image_id": True}, r'"image_id" is a boolean \(True\), .*a string or a whole num'),
        ({**E1, "image_id": ""}, '"image_id" is empty; give'),
        ({**E1, "image_id": ["a"]}, r'"image_id" is a list .*; give'),
        ({**E1, "image_id": "\udc80"}, '"image_id" holds .*half of a surrogate pair'),
        (
            {"url": "http://example.com/1.jpg", "caption": "x"},
            r"names a URL \(http://example.com/1.jpg\), not a file.*download the images",
        ),
        ({"image": "https://example.com/1.jpg", "caption": "x"}, "names a URL"),
        (
            {"image": "1.jpg", "caption": "x", "image_id": "B"},
            '"1.jpg" and image_id "B" belong to two different images',
        ),
    ],
)
def test_an_entry_without_an_image_is_one_bad_record(entry, message, tmp_path):
    entries = [E1, {"image": "b.jpg", "caption": "b", "image_id": "B"}, entry, E1]
    path = write(tmp_path / "train.json", entries)
    source = BlipJson(path)
    assert [source.image_id(i) for i in range(len(source))] == ["1.jpg", "B"]
    assert source.captions(0) == ("two dogs", "two dogs")
    (bad,) = source.bad
    assert bad.where == f"{path}: entry 2" and re.match(message, bad.reason)
    bad.reason.encode()


@pytest.mark.parametrize(
    "caption, kept, message",
    [
        ("missing", (), '"caption" is missing; give a string or a list'),
        (None, (), '"caption" is None; give a string'),
        (5, (), '"caption" is 5; give a string'),
        ({"a": 1}, (), '"caption" is {.*give a string'),
        ([], (), r'"caption" is \[\]; give a string'),
        ("", (), "caption 0 is empty; correct or drop it"),
        (["x", 5, "y"], ("x", "y"), r"caption 1 is a number \(5\), not a text; correct"),
        (["x", None], ("x",), "caption 1 is a null"),
        (["x", ["y"]], ("x",), "caption 1 is a list"),
        (["x", "  ", "y\0z"], ("x", "y\0z"), "caption 1 is empty"),
        ([{}, *[""] * 11], (), "caption 0 is an object .*caption 8 is empty; 3 more; correct"),
        (["x", "a medal \ud83d"], ("x",), r"caption 1 holds .\\ud83d., half of a surrogate pair"),
        (["x" * 100_001, "y"], ("y",), "caption 0 has 100,001 characters, more than 100,000"),
    ],
)
def test_a_bad_caption_leaves_the_image_its_others(caption, kept, message, tmp_path):
    entry = {"image": "2.jpg"} if caption == "missing" else {"image": "2.jpg", "caption": caption}
    path = write(tmp_path / "train.json", [E1, entry])
    source = BlipJson(path)
    assert [source.captions(i) for i in range(2)] == [("two dogs",), kept]
    assert not source.bad and not source.caption_faults(0)
    assert re.match(f"{re.escape(str(path))}: entry 1: {message}", source.caption_faults(1))


def test_json_lines_are_read_as_the_list_that_they_are(tmp_path):
    lines = [json.dumps(E1), json.dumps({**E1, "image": "2.jpg"}), "", "{broken", json.dumps(E1)]
    source = BlipJson(write(tmp_path / "train.jsonl", "\r\n".join(lines)))
    assert [source.image_id(i) for i in range(len(source))] == ["1.jpg", "2.jpg"]
    (bad,) = source.bad
    assert bad.where.endswith("entry 2") and bad.reason.startswith("not valid JSON (column 2")
    assert BlipJson(write(tmp_path / "one.jsonl", lines[0])).captions(0) == ("two dogs",)


def test_a_line_that_is_nested_too_deeply_is_one_bad_record(tmp_path):
    nested = "[" * 100_000
    source = BlipJson(write(tmp_path / "train.jsonl", "\n".join([nested, json.dumps(E1), "{}"])))
    assert source.image_id(0) == "1.jpg" and len(source) == 1
    assert [bad.reason.partition(";")[0] for bad in source.bad] == [
        "nested too deeply", '"image" is missing',
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"train\.json: nested too deeply; expected"):
        BlipJson(write(tmp_path / "train.json", nested))


def test_blip_files_that_are_not_there():
    with pytest.raises(FileNotFoundError, match=r"nothing\.json: no such file"):
        BlipJson("/nowhere/nothing.json")
    with pytest.raises(ValueError, match="a folder, not a JSON file; for its images use folder:"):
        BlipJson("/")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_file_is_read(encoding, tmp_path):
    text = json.dumps([{**E1, "caption": "zwei Hunde für 🐕"}], ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert BlipJson(tmp_path / "a.json").captions(0) == ("zwei Hunde für 🐕",)


def test_of_another_encoding_only_the_captions_with_odd_bytes_are_bad(tmp_path):
    entries = [E1, {"image": "2.jpg", "caption": ["un chien", "une allée"]}]
    text = json.dumps(entries, ensure_ascii=False)
    (tmp_path / "latin.json").write_bytes(text.encode("latin-1"))
    source = BlipJson(tmp_path / "latin.json")
    assert [source.captions(i) for i in range(2)] == [("two dogs",), ("un chien",)]
    assert "caption 1 holds '\\udce9', half of a surrogate pair or a byte" in source.caption_faults(
        1
    )
    (tmp_path / "cut.json").write_bytes(text.encode("utf-16")[:-1])
    with pytest.raises(ValueError, match=r"cut\.json: cannot be decoded .*save it as UTF-8"):
        BlipJson(tmp_path / "cut.json")


def test_a_number_of_any_length_is_read(tmp_path):
    long = "1" * 5000
    path = write(tmp_path / "a.json", f'[{{"image": "1.jpg", "caption": "x", "width": {long}}}]')
    assert BlipJson(path).captions(0) == ("x",)


# --- folder ---------------------------------------------------------------------------------------


def test_folder_finds_every_image_in_order(tmp_path):
    colours = {"b.PNG": RED, "a/z.jpg": BLUE, "a/b/c.webp": RED, "a-b.gif": BLUE, "Z.TIFF": RED}
    for name, colour in colours.items():
        paint(tmp_path / name, colour)
    for name in ("d.jpeg", "e.bmp", "f.tif"):
        paint(tmp_path / "more" / name, RED)
    for name in (".hidden.png", ".thumbs/x.png", "a/.git/y.jpg"):
        paint(tmp_path / name, RED)
    write(tmp_path / "notes.txt", "no image")
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


def test_folder_opens_with_broken_images_in_it(tmp_path, monkeypatch):
    write(tmp_path / "a.png", "no image")
    paint(tmp_path / "b.png", RED)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    source = Folder(f"~/{tmp_path.name}")
    with pytest.raises(BadImage, match=r"a\.png: not an image"):
        source.image(0)
    assert colour_of(source.image(1)) == RED


def test_a_file_name_that_is_not_utf8_is_a_bad_image(tmp_path):
    paint(tmp_path / "a.png", RED)
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    with pytest.raises(BadImage, match=r"caf\\udce9\.png: its name is not UTF-8; rename it"):
        Folder(tmp_path).image(0)


def test_folder_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        Folder(tmp_path / "nowhere")
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(ValueError, match=r"no image in it or below \(1 passed over: 1 \.txt"):
        Folder(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"notes\.txt: a file; give a folder of images"):
        Folder(tmp_path / "notes.txt")


@pytest.mark.parametrize("index", [-1, 1, 99])
def test_an_index_outside_is_refused(index, tmp_path):
    paint(tmp_path / "a.png", RED)
    write(tmp_path / "a.json", [{"image": "a.png", "caption": "x"}])
    for source in (Folder(tmp_path), BlipJson(tmp_path / "a.json")):
        for read in (source.image, source.captions, source.image_id):
            with pytest.raises(IndexError, match=f"has 1 images, asked for {index}"):
                read(index)


def test_packed_strings_keep_every_string():
    texts = ["", "plain", "ü🟥", "nul\0byte", "lone \ud83d surrogate", "\udcff", ""]
    packed = PackedStrings(iter(texts))
    assert len(packed) == 7 and [packed[i] for i in range(7)] == texts
    assert len(PackedStrings([])) == 0
    with pytest.raises(IndexError, match="7 strings, asked for 7"):
        packed[7]


# --- SPECs ----------------------------------------------------------------------------------------


def test_every_line_is_a_caption_where_the_spec_says_so(tmp_path):
    entries = [
        {"image": "1.jpg", "caption": "two dogs\n\n a cat \r\nbirds\n"},
        {**E1, "image": "2"},
    ]
    path = write(tmp_path / "a.json", entries)
    assert open_source(f"blip:{path}").captions(0) == ("two dogs\n\n a cat \r\nbirds\n",)
    source = open_source(f"blip:{path}#lines")
    assert [source.captions(i) for i in range(2)] == [("two dogs", "a cat", "birds"), ("two dogs",)]
    both = open_source(f"blip:{path}#lines@0.5+shapes:val@0.5")
    assert both.prefixes == (f"blip:{path}", "shapes:val") and len(both.captions(0)) == 3
    with pytest.raises(ValueError, match='shapes:val#lines": shapes reads no texts with lines'):
        open_source("shapes:val#lines")
    path = write(tmp_path / "b.json#lines", [E1])
    assert open_source(f"blip:{path}").image_id(0) == "1.jpg"


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
        (
            "zzz:x",
            r'"zzz:x": unknown kind "zzz"; Supported: shapes, blip, .*moving-shapes \(for example',
        ),
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
    for name, kind in KINDS.items():
        assert kind.example.startswith(f"{name}:")
    others = {name: kind for name, kind in KINDS.items() if kind.split != "path"}
    assert len(others) == 12
    for name, kind in others.items():
        with pytest.raises(FileNotFoundError, match="nowhere"):
            open_source(f"{name}:/nowhere" + "#test" * (kind.split == "required"))


def test_another_kind_is_one_more_line_of_the_table(tmp_path, monkeypatch):
    """A text file with a colour a line; "#SPLIT" takes the lines that begin with it."""

    class Colours(Captioned):
        def __init__(self, path: str, split: str, image_root: str):
            lines = Path(image_root, path).read_text().splitlines()
            self.colours = [line.split()[1] for line in lines if line.startswith(split)]
            ids = PackedStrings(map(str, range(len(self.colours))))
            super().__init__(path, ids, *pack_captions([[f"all {c}\nor so"] for c in self.colours]))

        def encoded(self, index: int) -> bytes:
            stream = io.BytesIO()
            Image.new("RGB", (6, 4), self.colours[index]).save(stream, "PNG")
            return stream.getvalue()

    def open_colours(at: Location) -> Colours:
        return Colours(at.path, at.split, at.image_root)

    kind = Kind("colours:list.txt#train", open_colours, split="required")
    monkeypatch.setitem(KINDS, "colours", kind)
    (tmp_path / "list.txt").write_text("train red\nval blue\ntrain lime\n")
    source = open_source("colours:list.txt#train", str(tmp_path))
    assert [source.captions(i) for i in range(2)] == [("all red\nor so",), ("all lime\nor so",)]
    assert source.image(1).getpixel((0, 0)) == (0, 255, 0)
    lines = open_source("colours:list.txt#val#lines", str(tmp_path))
    assert lines.captions(0) == ("all blue", "or so")
    both = open_source("colours:list.txt#val+shapes:val", str(tmp_path))
    assert both.image_id(0) == "colours:list.txt/0" and len(both) == 1001
    for spec, message in (
        ("colours:list.txt", r'"colours:list.txt": which split\? .* as in colours:list.txt#train'),
        ("colour:list.txt", r'unknown kind "colour"; did you mean "colours:list.txt"\?'),
        ("colours:#train", "names no path; write it as in colours:list.txt#train"),
        ("zzz:x", "Supported: shapes, .*, colours"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(spec, str(tmp_path))
