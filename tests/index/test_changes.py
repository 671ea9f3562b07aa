"""A set that changes under its index: what the next build says, and what search answers.

Covers index/commit.py.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import index as commands
from edje_jax.data.bad_records import TooManyBadRecords
from edje_jax.data.sources import tfds
from edje_jax.data.sources.registry import open_source
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.commit import Report
from edje_jax.index.maintain import compact, remove
from edje_jax.index.row_lookup import RowLookup
from edje_jax.index.shard_files import file_entry, kind_of
from edje_jax.index.store import Store, verify
from edje_jax.models.token_formats import unpack
from edje_jax.scenes.shapes import Shapes
from tests.real_sets import WRITERS, Scene, scenes

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "search.md"
SHAPES = Shapes("val")


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 3)
    monkeypatch.setattr(building, "BATCH", 2)


class Set:
    """A BLIP-style set of six images with a caption each, and its index."""

    def __init__(self, folder: Path, reranker: Reranker):
        self.folder, self.index, self.reranker = folder / "set", folder / "index", reranker
        self.folder.mkdir()
        self.captions: dict[str, str] = {}
        for number in range(6):
            self.put(f"{number:02d}.png", number)

    def put(self, name: str, number: int) -> None:
        """Write the image `number` of the shapes under a name, with a caption if it has none."""
        SHAPES.image(number).save(self.folder / name)
        self.captions.setdefault(name, f"the image {name}")

    def spec(self) -> str:
        entries = [{"image": name, "caption": text} for name, text in self.captions.items()]
        (self.folder / "set.json").write_text(json.dumps(entries))
        return f"blip:{self.folder / 'set.json'}"

    def build(self, **options) -> Report:
        report = self.build_share((0, 1), **options)
        assert report
        return report

    def build_share(self, share: tuple[int, int], **options) -> Report | None:
        source = open_source(self.spec())
        return build(
            self.reranker.runtime,
            self.reranker.stamp,
            source,
            "blip",
            self.index,
            BuildOptions(share=share, **options),
        )

    def answers(self) -> dict[str, tuple[list[str], bytes]]:
        """{id: (captions, tokens)} of every image that the index answers with."""
        store = Store(self.index)
        tokens = np.asarray(unpack(store.tokens(np.arange(len(store)))), np.float32)
        found = self.reranker.search(ImageIndex(store), ["a red circle"], k=99, top_k=99)[0]
        assert {result["id"] for result in found} == set(store.image_of_id)
        texts = [text for _, text in store.captions]
        expected = self.reranker.embed_texts(texts)
        np.testing.assert_allclose(store.caption_embeddings, expected, atol=1e-5)
        assert not list(verify(self.index))
        return {
            store.row(i).id: (store.row(i).captions, tokens[i].tobytes()) for i in range(len(store))
        }

    def shows(self, name: str) -> bool:
        """Whether the index holds what the model says of an image's file as it is now."""
        now = self.reranker.encode_images([self.folder / name])[0]
        held = np.frombuffer(self.answers()[name][1], np.float32).reshape(now.shape)
        return np.allclose(held, now, rtol=2**-8, atol=1e-5)


@pytest.fixture
def made(tmp_path, reranker) -> Set:
    """A set whose index is up to date."""
    made = Set(tmp_path, reranker)
    made.build()
    return made


# --- the table of the documentation ---------------------------------------------------------------


def table() -> list[tuple[str, list[str], str]]:
    """(what was done, what the build says, what search answers) of each row in its table."""
    part = PAGE.read_text("utf-8").split("## When the set changes")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| ")]
    return [
        (done.strip(), re.findall(r"`([^`]+)`", says), answers.strip())
        for done, says, answers in rows[1:]
    ]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def move(made: Set) -> None:
    made.folder = made.folder.rename(made.folder.with_name("moved"))


def break_all(made: Set) -> None:
    for name in made.captions:
        (made.folder / name).write_bytes(b"no image")


STEPS: dict[str, tuple[Callable[[Set], object], dict[str, bool], str]] = {
    "nothing": (lambda _: None, {}, ""),
    "an image was added": (lambda made: made.put("06.png", 6), {}, "06.png"),
    "a file was replaced by another image": (lambda made: made.put("01.png", 41), {}, "01.png"),
    "a file was written again, or copied, with the same content": (
        lambda made: touch(made.folder / "01.png"), {}, "",
    ),
    "a caption was corrected": (
        lambda made: made.captions.update({"02.png": "a better caption"}), {}, "02.png",
    ),
    "the files were moved, ids are the same": (move, {}, ""),
    "a file was deleted": (lambda made: (made.folder / "03.png").unlink(), {}, ""),
    "then: built with `--prune`": (lambda _: None, {"prune": True}, "03.png"),
    "then: the file was put back": (lambda made: made.put("03.png", 3), {}, "03.png"),
    "an entry was taken out of the set": (lambda made: made.captions.pop("03.png"), {}, ""),
    "then: the entry was put back": (lambda made: made.put("03.png", 3), {}, ""),
    "`edje index remove`": (lambda made: remove(made.index, ["04.png"]), {}, "04.png"),
    "then: `edje index compact`": (lambda made: compact(made.index), {}, ""),
    "then: built with `--restore`": (lambda _: None, {"restore": True}, "04.png"),
    "a file was replaced by a broken one": (
        lambda made: (made.folder / "00.png").write_bytes(b"no image"), {}, "00.png",
    ),
    "then: the file was mended": (lambda made: made.put("00.png", 40), {}, "00.png"),
    "a broken file was added": (
        lambda made: (
            made.captions.update({"bad.png": "nothing"}),
            (made.folder / "bad.png").write_bytes(b"no image"),
        ), {}, "",
    ),
    "then: it was deleted": (
        lambda made: (made.captions.pop("bad.png"), (made.folder / "bad.png").unlink()), {}, "",
    ),
    "a caption has half a surrogate pair": (
        lambda made: made.captions.update({"05.png": "half \ud83d"}), {}, "05.png",
    ),
    "then: the caption was corrected": (
        lambda made: made.captions.update({"05.png": "whole"}), {}, "05.png",
    ),
    "every image is broken": (break_all, {}, ""),
}  # fmt: skip
"""Change of the set -> (function, options of the build, id whose search result changes)."""


def test_the_table_in_the_documentation_is_what_happens(made, reranker, caplog, monkeypatch):
    monkeypatch.setattr(Reranker, "from_pretrained", lambda _, **options: reranker)
    caplog.set_level(logging.INFO)
    rows = table()
    assert [done for done, _, _ in rows] == list(STEPS)
    encoded, encode = [], building.encode
    monkeypatch.setattr(building, "encode", lambda *x: encoded.append(x) or encode(*x))
    for done, says, answers in rows:
        act, options, name = STEPS[done]
        before = made.answers()
        encoded.clear()
        act(made)
        caplog.clear()
        try:
            commands.build("model", made.spec(), str(made.index), BuildOptions(**options))
            told = caplog.text
        except TooManyBadRecords as error:
            told = str(error)
        for words in says:
            assert words in told, f"{done}: {told}"
        check(made, name, answers, before)
        is_read = any(word in done for word in ("added", "replaced", "mended", "broken"))
        assert bool(encoded) == (is_read or "--restore" in done), done


def check(made: Set, name: str, answers: str, before: dict[str, tuple[list[str], bytes]]) -> None:
    """Compare what search answers with the words of the table's third column."""
    now = made.answers()
    others = {other: found for other, found in now.items() if other != name}
    assert others == {other: found for other, found in before.items() if other != name}
    match answers:
        case "the same" | "the same; the server shows files from the new place":
            assert now == before
            assert all(made.folder.samefile(Path(row.path).parent) for row in rows_of(made))
        case "the new image too":
            assert name not in before and made.shows(name)
        case "the new content under the same id":
            assert before.get(name) != now[name] and made.shows(name)
        case "the new caption instead of the old one" | "the image with its caption":
            assert now[name][0] == [made.captions[name]] != before[name][0]
            assert made.shows(name)
        case "the image as it was":
            assert now == before
        case "no longer the image":
            assert name not in now
        case "the image again":
            assert name not in before and made.shows(name)
        case "the image without that caption":
            assert now[name][0] == [] and made.shows(name)
        case "as before that build":
            assert now == before
        case _:
            raise AssertionError(f"the table says {answers!r}, which no test compares")


def rows_of(made: Set):
    store = Store(made.index)
    return [store.row(i) for i in range(len(store))]


# --- what the table does not say ------------------------------------------------------------------


def test_a_build_after_a_change_that_is_killed_anywhere_ends_the_same(made, tmp_path, monkeypatch):
    made.put("01.png", 41)
    made.captions |= {"04.png": "another caption"}
    made.put("06.png", 6)
    (made.folder / "05.png").unlink()
    before = shutil.copytree(made.index, tmp_path / "before")
    made.build(prune=True)
    expected = files(made.index)
    touched = at = deaths = 0

    class Killed(BaseException):
        pass

    def dying(plain):
        def act(*arguments, **options):
            nonlocal touched
            plain(*arguments, **options)
            touched += 1
            if touched == at:
                raise Killed

        return act

    while True:
        at, touched = at + 1, 0
        shutil.rmtree(made.index)
        shutil.copytree(before, made.index)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            try:
                made.build(prune=True)
                break
            except Killed:
                deaths += 1
        assert Store(made.index).manifest.shards, "the index is a whole one at every moment"
        made.build(prune=True)
        assert files(made.index) == expected, f"killed after {at} files"
    assert deaths > 10


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shares_bring_an_index_up_to_a_change_as_one_process_does(made, tmp_path):
    for number in range(5):
        made.put(f"{number:02d}.png", 40 + number)
    made.captions |= {"05.png": "another caption"}
    shutil.copytree(made.index, tmp_path / "copy")
    made.build()
    alone = files(made.index)
    made.index = tmp_path / "copy"
    assert made.build_share((1, 2)) is None and made.answers().keys() == made.captions.keys()
    report = made.build_share((0, 2))
    assert report and files(made.index) == alone
    assert len(report.changed) == 5 and report.recaptioned == ["05.png"]
    # Where only words changed, the first process writes them.
    made.captions |= {"05.png": "one more"}
    assert made.build_share((1, 2)) is None and made.build_share((0, 2))
    assert made.answers()["05.png"][0] == ["one more"]


def test_an_index_of_format_1_is_taken_as_it_is_and_compared_from_then_on(made, caplog):
    for path in made.index.glob("rows-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        old = [{k: v for k, v in row.items() if k not in ("stamp", "digest")} for row in rows]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in old))
    manifest = json.loads((made.index / "manifest.json").read_text())
    for record in manifest["shards"]:
        names = [name for name in record["files"] if kind_of(name) not in RowLookup._fields]
        record["files"] = {name: file_entry(made.index / name) for name in names}
    del manifest["dropped"], manifest["faults"], manifest["embedding_dtype"]
    (made.index / "manifest.json").write_text(json.dumps(manifest | {"format": 1}))
    before = made.answers()
    made.captions |= {"00.png": "another caption"}
    report = made.build()
    assert report.unstamped == 6 and not report.changed and report.recaptioned == ["00.png"]
    assert {name: tokens for name, (_, tokens) in made.answers().items()} == {
        name: tokens for name, (_, tokens) in before.items()
    }
    assert made.build().unstamped == 0
    made.put("02.png", 42)
    assert made.build().changed == ["02.png"] and made.shows("02.png")


def test_removing_an_id_twice_counts_once(made):
    assert remove(made.index, ["01.png", "01.png", "02.png"]) == 2
    assert Store(made.index).manifest.removed == ("01.png", "02.png")
    report = made.build()
    assert report.removed == ["01.png", "02.png"] and len(made.answers()) == 4


def test_restored_images_that_changed_meanwhile_are_encoded_again(made):
    remove(made.index, ["01.png", "02.png"])
    made.put("01.png", 41)
    report = made.build(restore=True)
    assert report.changed == ["01.png"] and report.new == ["02.png"]
    assert made.shows("01.png") and made.shows("02.png")


def test_compacting_drops_what_counts_no_more_and_keeps_every_answer(made):
    made.put("01.png", 41)
    made.captions |= {"00.png": "another caption"}
    made.build()
    (made.folder / "05.png").unlink()
    made.build(prune=True)
    before, names = made.answers(), set(files(made.index))
    assert {"rows-00000.jsonl", "rows-00000.1.jsonl", "captions-00000.1.npy"} < names
    assert compact(made.index) == 2
    assert made.answers() == before
    listed = {name for shard in Store(made.index).manifest.shards for name in shard["files"]}
    assert set(files(made.index)) == listed | {"manifest.json", "rejected.csv"}
    report = made.build()
    assert not (report.new or report.changed or report.recaptioned) and report.gone == []


def test_records_of_one_id_are_one_image_that_is_compared_once(made):
    entries = [
        {"image": "00.png", "image_id": "one", "caption": "first"},
        {"image": "01.png", "image_id": "one", "caption": "second"},
    ]
    path = made.folder / "twice.json"

    def again() -> Report:
        path.write_text(json.dumps(entries))
        out = made.index.with_name("2")
        report = build(
            made.reranker.runtime, made.reranker.stamp, open_source(f"blip:{path}"), "twice", out
        )
        assert report
        return report

    again()
    report = again()
    assert not (report.new or report.changed or report.recaptioned)
    entries[1]["caption"] = "third"
    assert again().recaptioned == ["one"]
    # The image of the id is another file now, with the same content and then with another one.
    shutil.copy(made.folder / "00.png", made.folder / "copy.png")
    entries[0]["image"] = "copy.png"
    report = again()
    assert report.moved == ["one"] and not report.changed
    entries[0]["image"] = "02.png"
    report = again()
    assert report.changed == ["one"]


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_set_is_compared(kind, reranker, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index, made = tmp_path / "index", scenes(7)

    def again(made: list[Scene]) -> Report:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        tfds._opened.cache_clear()  # A set is not written anew while a program reads it
        spec = WRITERS[kind](tmp_path / "set", made)
        report = build(reranker.runtime, reranker.stamp, open_source(spec), spec, index)
        assert report
        return report

    assert len(again(made).new) == 7
    report = again(made)
    assert report.changed == report.new == report.gone == report.recaptioned == []
    made[1] = made[1]._replace(png=made[2].png)
    made[3] = made[3]._replace(captions=("corrected",))
    report = again([*made[:5], made[6]])
    assert (report.changed, report.recaptioned, report.gone) == (["1"], ["3"], ["5"])
    store = Store(index)
    of = store.image_of_id
    np.testing.assert_allclose(*store.embeddings[[of["1"], of["2"]]], atol=1e-5)
    assert store.row(of["3"]).captions == ["corrected"] and "5" in of


class Drawn:
    """A source that tells nothing of its images but their pixels."""

    def __init__(self, numbers: list[int]):
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def image_id(self, index: int) -> str:
        return str(index)

    def captions(self, index: int) -> list[str]:
        return ["fine", "half \ud83d"][: index + 1]

    def image(self, index: int) -> Image.Image:
        return SHAPES.image(self.numbers[index])


def test_a_source_without_stamps_is_compared_by_its_pixels(reranker, tmp_path):
    build(reranker.runtime, reranker.stamp, Drawn([0, 1]), "drawn", tmp_path)
    report = build(reranker.runtime, reranker.stamp, Drawn([0, 1]), "drawn", tmp_path)
    assert report and report.changed == report.new == []
    # And its captions are looked at here, if it does not do so itself.
    assert list(report.faults) == ["1"] and Store(tmp_path).row(1).captions == ["fine"]
    report = build(reranker.runtime, reranker.stamp, Drawn([0, 2]), "drawn", tmp_path)
    assert report and report.changed == ["1"]


def test_bad_records_are_counted_and_limited(made, caplog):
    made.captions |= {"00.png": "half \ud83d", "bad.png": "nothing"}
    (made.folder / "bad.png").write_bytes(b"no image")
    before = made.answers()
    with pytest.raises(TooManyBadRecords, match=r"2 of 7 records are bad, more than --max-bad 0.2"):
        made.build(max_bad=0.2)
    assert made.answers() == before
    report = made.build(max_bad=0.3)
    assert list(report.rejected) == ["bad.png"] and list(report.faults) == ["00.png"]
    assert "half of a surrogate pair" in (made.index / "rejected.csv").read_text("utf-8")
    assert made.answers().keys() == before.keys()


def test_exactly_the_share_may_be_bad(reranker, tmp_path):
    for number in range(100):
        image = tmp_path / "set" / f"{number}.png"
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(b"no image") if number < 29 else SHAPES.image(number).save(image)
    source, out = open_source(f"folder:{tmp_path}/set"), tmp_path / "index"
    # In floating point, 0.29 * 100 is less than 29.
    report = build(
        reranker.runtime, reranker.stamp, source, "folder", out, BuildOptions(max_bad=0.29)
    )
    assert report and len(report.rejected) == 29


def test_an_index_among_its_images_is_no_image(reranker, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for number in range(3):
        SHAPES.image(number).save(tmp_path / f"{number}.png")
    for new in (["0.png", "1.png", "2.png"], []):
        source = open_source(f"folder:{tmp_path}")
        report = build(reranker.runtime, reranker.stamp, source, "folder", tmp_path / "index")
        assert report and (report.new, report.rejected) == (new, {})
    assert "1 thumbnails of an index (index/thumbnails-00000.bin)" in caplog.text


def test_a_set_of_bad_images_alone_leaves_no_index(tmp_path, reranker):
    made = Set(tmp_path, reranker)
    break_all(made)
    for _ in range(2):
        with pytest.raises(TooManyBadRecords, match="6 of 6 records are bad, so that no image"):
            made.build()
        assert list(made.index.iterdir()) == []
    made.put("00.png", 0)
    assert made.build().new == ["00.png"] and list(made.answers()) == ["00.png"]


def test_pruning_a_set_whose_files_are_all_missing_leaves_the_index(made):
    before = made.answers()
    for name in before:
        (made.folder / name).rename(made.folder / f"away-{name}")
    with pytest.raises(TooManyBadRecords, match="6 of 6 records are bad, so that no image is left"):
        made.build(prune=True)
    assert made.answers() == before
    report = made.build()
    assert report.gone == list(before) and made.answers() == before
    (made.folder / "away-00.png").rename(made.folder / "00.png")
    made.build(prune=True)
    assert list(made.answers()) == ["00.png"]
    (made.folder / "00.png").write_bytes(b"no image")  # What was dropped is of no help
    with pytest.raises(TooManyBadRecords, match=r"6 of 6 .*(\n.*)*01.png: its file is missing"):
        made.build()
    assert list(made.answers()) == ["00.png"]


def test_a_name_that_is_not_utf_8_is_one_bad_record(tmp_path, reranker):
    folder = tmp_path / "odd \udcff folder"
    folder.mkdir()
    for name in ("fine.png", "odd \udcfe.png"):
        SHAPES.image(0).save(folder / name)
    index = tmp_path / "index"
    for _ in range(2):
        report = build(
            reranker.runtime, reranker.stamp, open_source(f"folder:{folder}"), "folder", index
        )
        assert report and list(report.rejected) == ["odd \\udcfe.png"]
    # The folder's own name is no part of an id.
    assert Path(Store(index).row(0).path) == folder / "fine.png"
    assert "odd \\udcfe.png" in (index / "rejected.csv").read_text("utf-8")
