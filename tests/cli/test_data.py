"""`edje data stat` and `edje data pack` as users type them.

Covers cli/commands/data.py, data/pack.py and data/statistics.py.
"""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.cli.edje import main
from edje_jax.cli.program import UsageError
from edje_jax.data import pack as packing
from edje_jax.data.images import file_bytes
from edje_jax.data.sources.registry import open_source
from edje_jax.data.sources.subset import Subset
from edje_jax.data.statistics import quantiles, spread
from edje_jax.scenes.shapes import Shapes
from tests.real_sets import scenes, write_blip, write_tar

COUNT = 7


@pytest.fixture
def spec(tmp_path) -> str:
    """Seven scenes, the third cut short and the fifth gone."""
    spec = write_blip(tmp_path / "set", scenes(COUNT))
    path = tmp_path / "set" / "0002.png"
    path.write_bytes(path.read_bytes()[:200])
    (tmp_path / "set" / "0004.png").unlink()
    return spec


def pack(spec: str, out: Path, *more: str) -> dict[str, bytes]:
    """{name: content} of what was packed."""
    assert main(["data", "pack", spec, "--out", str(out), "--shard-size", "3", *more]) == 0
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


# --- stat -----------------------------------------------------------------------------------------


def test_stat_counts_and_names_what_cannot_be_read(spec, capsys, caplog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["data", "stat", spec]) == 0
    told = capsys.readouterr().out
    words = sorted(len(text.split()) for scene in scenes(COUNT) for text in scene.captions)
    for row in (
        r"images +\S+ 7 ", r"different ids +\S+ 7 ", r"captions +\S+ 14 ",
        r"captions an image +\S+ 2: 7 ", r"images decoded +\S+ 7 ", r"could not be read +\S+ 2 ",
        rf"words a caption .* \S+ {words[0]}, .*, {words[-1]} ", r"width .* \S+ 64, 64, .*, 64 ",
    ):  # fmt: skip
        assert re.search(row, told), (row, told)
    assert "0004.png: no such file" in caplog.text and "0002.png: broken" in caplog.text


def test_stat_looks_at_some_and_draws_a_grid(spec, tmp_path, capsys):
    grid = tmp_path / "new" / "grid.png"
    assert main(["data", "stat", spec, "--look-at", "3", "--grid", str(grid)]) == 0
    assert re.search(r"images decoded +\S+ 3 ", capsys.readouterr().out)
    with Image.open(grid) as sheet:
        assert sheet.format == "PNG" and sheet.width == 4 * 256
        # Image, text and the reason why an image is missing are there.
        assert len(sheet.crop((0, 0, 256, 256)).getcolors(1 << 16)) > 10
        assert len(sheet.crop((0, 256, 256, 328)).getcolors(1 << 16)) > 2
        reds = sheet.crop((512, 0, 768, 256)).getcolors(1 << 16)
        assert (255, 0, 0) in {colour for _, colour in reds}
    assert [path.name for path in grid.parent.iterdir()] == ["grid.png"]


def test_stat_of_a_set_that_has_nothing_to_decode_or_say(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [("1.txt", b"")])
    assert main(["data", "stat", f"webdataset:{tmp_path}/a.tar"]) == 0
    assert re.search(r"captions an image +\S+ 0: 1 ", capsys.readouterr().out)


@pytest.fixture
def mixed(tmp_path) -> str:
    """Three scenes with a bad caption, no usable one, and one of several lines; two bad entries."""
    spec = write_blip(tmp_path / "mixed", scenes(3))
    path = tmp_path / "mixed" / "all.json"
    first, second, third = json.loads(path.read_text())
    first["caption"].append("a medal \ud83d")
    second["caption"] = 5
    third["caption"] = "two dogs\na cat"
    path.write_text(json.dumps([first, "odd", second, {"caption": "x"}, third]))
    return spec


def test_stat_names_bad_records_and_hints_at_lines(mixed, capsys, caplog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    caplog.set_level("INFO")
    assert main(["data", "stat", mixed]) == 0
    told = capsys.readouterr().out
    for row in (
        r"captions +\S+ 3 ", r"could not be read +\S+ 0 ", r"records left out +\S+ 2 ",
        r"images with bad captions +\S+ 2 ",
    ):  # fmt: skip
        assert re.search(row, told), (row, told)
    for message in (
        "entry 1: a string, not an object", 'entry 3: "image" is missing',
        "entry 0: caption 2 holds", 'entry 2: "caption" is 5',
        "1 captions have several lines; .* write #lines after the SPEC",
    ):  # fmt: skip
        assert re.search(message, caplog.text), message
    caplog.clear()
    assert main(["data", "stat", f"{mixed}#lines"]) == 0
    assert re.search(r"captions +\S+ 4 ", capsys.readouterr().out)
    assert "several lines" not in caplog.text


def test_mistaken_options(spec, tmp_path):
    for arguments, message in (
        (["stat", spec, "--look-at", "-1"], "--look-at -1"),
        (["stat", spec, "--grid", "sheet.pdf"], r"sheet\.pdf: name a file that ends in \.png"),
        (["pack", spec, "--out", str(tmp_path / "x"), "--shard-size", "0"], "the least is 1"),
    ):
        with pytest.raises(UsageError, match=message):
            main(["data", *arguments])


def test_quantiles_and_spread():
    from collections import Counter

    assert quantiles(Counter([1, 1, 2, 9]), (0.0, 0.5, 0.75, 1.0)) == [1, 1, 2, 9]
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == spread(3, 0) == [0, 1, 2]


# --- pack -----------------------------------------------------------------------------------------


def test_a_pack_holds_every_image_that_can_be_read(spec, tmp_path, caplog):
    files = pack(spec, tmp_path / "packed")
    names = [f"pictures-0000{i}-of-00003.array_record" for i in range(3)]
    assert [*files] == [*names, "rejected.csv"]
    with (tmp_path / "packed" / "rejected.csv").open(newline="") as file:
        (head, *rows) = csv.reader(file)
    assert head == ["id", "reason"] and [row[0] for row in rows] == ["2", "4"]
    assert "2 could not be read" in caplog.text
    source, made = open_source(f"arrayrecord:{tmp_path}/packed/*.array_record"), scenes(COUNT)
    assert [source.image_id(i) for i in range(len(source))] == [*"01356"]
    assert [file_bytes(source, i) for i in range(5)] == [made[n].png for n in (0, 1, 3, 5, 6)]
    assert source.captions(3) == made[5].captions


def test_a_pack_names_the_records_and_captions_that_it_lacks(mixed, tmp_path):
    for _ in range(2):  # The second call finds all shards made
        pack(mixed, tmp_path / "packed")
        with (tmp_path / "packed" / "rejected.csv").open(newline="") as file:
            rows = dict(list(csv.reader(file))[1:])
        assert [name.rpartition("/")[2] for name in rows] == [
            "all.json: entry 1", "all.json: entry 3", "0", "1",
        ]  # fmt: skip
        assert "packed without a caption: " in rows["0"] and "entry 0: caption 2" in rows["0"]
    source = open_source(f"arrayrecord:{tmp_path}/packed/*.array_record")
    assert [source.captions(i)[-1:] for i in range(3)] == [
        scenes(1)[0].captions[-1:], (), ("two dogs\na cat",),
    ]  # fmt: skip


def test_records_of_one_id_are_packed_as_one(mixed, tmp_path):
    pack(f"{mixed}+{mixed}", tmp_path / "packed")
    source = open_source(f"arrayrecord:{tmp_path}/packed/*.array_record")
    assert len(source) == 3 and source.captions(0) == scenes(1)[0].captions


def test_images_that_are_drawn_are_packed_as_png(tmp_path, monkeypatch):
    monkeypatch.setattr(Shapes, "__len__", lambda self: 4)
    pack("shapes:val", tmp_path / "packed")
    source = open_source(f"arrayrecord:{tmp_path}/packed/*.array_record")
    assert source.image(3).tobytes() == Shapes("val").image(3).tobytes()
    assert source.captions(3) == Shapes("val").captions(3)


def test_a_pack_that_was_killed_goes_on(spec, tmp_path, monkeypatch):
    straight = pack(spec, tmp_path / "straight")
    out, replace, count = tmp_path / "packed", os.replace, 0

    def dying(source, target):
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            pack(spec, out)
    assert [path.name for path in out.iterdir()] == ["pictures-00000-of-00003.array_record"]
    with pytest.raises(FileNotFoundError, match="2 of 3 shards are not there"):
        open_source(f"arrayrecord:{out}/*.array_record")
    gone = 2**22 + 1  # More than any process's number
    (out / f"pictures-00001-of-00003.array_record.{gone}.tmp").write_bytes(b"cut short")
    made = []
    with monkeypatch.context() as patch:
        write = packing._write
        patch.setattr(packing, "_write", lambda path, *a: made.append(path.name) or write(path, *a))
        assert pack(spec, out).keys() == straight.keys()
    assert made == [f"pictures-0000{i}-of-00003.array_record" for i in (1, 2)]
    assert tables(out) == tables(tmp_path / "straight")


def test_a_pack_leaves_the_files_of_a_process_that_lives(spec, tmp_path):
    out = tmp_path / "packed"
    pack(spec, out)
    living = out / f"pictures-00001-of-00003.array_record.{os.getpid()}.tmp"
    living.write_bytes(b"being written")
    assert living.name in pack(spec, out)


def test_a_shard_is_written_without_holding_it_in_memory(tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    read = []

    def spied(path, source, records, files, head):
        assert [next(files), next(files)] == [b"0", b"1"]
        assert records == range(6) and set(read) <= {0, 1, 2, 3}
        raise Seen

    monkeypatch.setattr(packing, "AHEAD", 2)
    monkeypatch.setattr(packing, "_file", lambda source, row: read.append(row) or b"%d" % row)
    monkeypatch.setattr(packing, "_write", spied)
    with pytest.raises(Seen):
        packing.pack(Subset(Shapes("val"), np.arange(1000) < 6), tmp_path / "packed")


def test_a_damaged_shard_of_a_pack_is_named(spec, tmp_path):
    pack(spec, tmp_path / "packed")
    (tmp_path / "packed" / "pictures-00001-of-00003.array_record").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"00001-of.*delete it and pack again"):
        pack(spec, tmp_path / "packed")


def tables(folder: Path) -> list[dict]:
    return [packing.read_table(str(path)) for path in sorted(folder.glob("*.array_record"))]


def test_a_folder_of_another_pack_is_refused(spec, tmp_path):
    pack(spec, tmp_path / "packed")
    other = write_blip(tmp_path / "other", scenes(2))
    for arguments in ([other], [spec, "--shard-size", "4"]):
        with pytest.raises(ValueError, match="packed from another set, or with another --shard"):
            pack(arguments[0], tmp_path / "packed", *arguments[1:])
    told = json.loads((tmp_path / "set" / "all.json").read_text())
    told[0]["caption"] = "another"
    (tmp_path / "set" / "all.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="packed from another set"):
        pack(spec, tmp_path / "packed")


def test_repeated_images_are_not_packed_twice(spec, tmp_path):
    with pytest.raises(ValueError, match=r"weights repeats images; pack the parts"):
        pack(f"{spec}@1+{spec}@3", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
