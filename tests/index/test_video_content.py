"""Indexes of videos: built from files, killed, brought up to date, merged, and read back.

Covers index/thumbnails.py.
"""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax import Reranker
from edje_jax.data.sources.registry import open_source
from edje_jax.data.stamps import file_stamp
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import compact, remove
from edje_jax.index.shard_files import BadStore
from edje_jax.index.shard_writer import ShardWriter
from edje_jax.index.store import Store, verify
from edje_jax.index.video_content import STRIP, strip_of
from edje_jax.models.token_formats import unpack
from tests.videos import number_of, write_video

GOOD = ("a.mp4", "b.mkv", "c.webm", "d.avi", "long.mp4", "short.mp4")
BAD = ("cut.mp4", "empty.mp4", "words.mkv")


def write_folder(folder: Path) -> Path:
    """Videos in several containers and codecs, three of which cannot be read."""
    write_video(folder / "a.mp4", "mpeg4", sound=True)
    write_video(folder / "b.mkv", "mjpeg", size=(48, 64))
    write_video(folder / "c.webm", "libvpx-vp9")
    write_video(folder / "d.avi", "mpeg4", 39)
    write_video(folder / "long.mp4", "mpeg4", 39, rate=1)
    write_video(folder / "short.mp4", "mpeg4", 2)
    whole = write_video(folder / "cut.mp4", "mpeg4", front=True).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 5])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "words.mkv").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def reranker(video_model) -> Reranker:
    return Reranker.from_pretrained(video_model)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def index(reranker, videos, tmp_path_factory) -> Path:
    """The finished index of that folder; to be read only."""
    return make(reranker, videos, tmp_path_factory.mktemp("index") / "videos.index")


def make(reranker: Reranker, folder: Path, out: Path, **options) -> Path:
    spec = f"video:{folder}"
    build(reranker.runtime, reranker.stamp, open_source(spec), spec, out, BuildOptions(**options))
    return out


def content(store: Store) -> dict[str, tuple]:
    """{id: everything that is kept of it}"""
    tokens = np.asarray(unpack(store.tokens(np.arange(len(store)))))
    return {
        store.row(i).id: (
            store.thumbnail(i), store.strip(i), store.frame_times(i).tobytes(),
            store.video_length(i), tokens[i].tobytes(), store.embeddings[i : i + 1].tobytes(),
        )
        for i in range(len(store))
    }  # fmt: skip


def test_videos_are_kept_with_times_and_strips_and_bad_ones_are_named(index, reranker):
    store = Store(index)
    assert store.frames == 4 and store.manifest.rejected.keys() == set(BAD)
    assert sorted(store.row(i).id for i in range(len(store))) == list(GOOD)
    assert list(verify(index)) == []

    row = store.image_of_id["a.mp4"]
    # The middles of four equal parts of twenty frames at ten a second.
    np.testing.assert_allclose(store.frame_times(row), [0.2, 0.7, 1.2, 1.7], atol=0.06)
    assert store.video_length(row) == pytest.approx(2, abs=0.1)
    strip = Image.open(io.BytesIO(store.strip(row)))
    assert strip.format == "JPEG" and strip.size == (4 * 96, STRIP)
    shown = [strip.crop((96 * i + 8, 8, 96 * i + 88, 64)) for i in range(4)]
    assert [number_of(one) for one in shown] == [2, 7, 12, 17]
    assert number_of(Image.open(io.BytesIO(store.thumbnail(row)))) == 12

    row = store.image_of_id["short.mp4"]
    assert np.isnan(store.frame_times(row)).tolist() == [False, False, True, True]
    assert Image.open(io.BytesIO(store.strip(row))).width == 2 * 96
    assert unpack(store.tokens(np.array([row])))[0].any(axis=-1).reshape(4, -1).all(1).tolist() == [
        True, True, False, False
    ]  # fmt: skip
    row = store.image_of_id["long.mp4"]
    assert store.video_length(row) == pytest.approx(39, abs=1)


def test_rows_are_what_the_model_makes_of_the_frames(index, videos, reranker):
    store = Store(index)
    row = store.image_of_id["c.webm"]
    tokens = reranker.encode_images([videos / "c.webm"])
    stored = np.asarray(unpack(store.tokens(np.array([row]))), np.float32)
    np.testing.assert_allclose(stored, tokens, atol=0.02, rtol=0.02)
    embedded = reranker.embed_images([str(videos / "c.webm")])
    np.testing.assert_allclose(store.embeddings[row : row + 1], embedded, atol=1e-5)


def test_killed_between_parts_a_build_loses_no_more_frames_than_a_part_has(
    index, videos, reranker, tmp_path, monkeypatch
):
    monkeypatch.setattr(building, "PART_ROWS", 8)  # Frames: two videos
    monkeypatch.setattr(building, "BATCH", 4)
    append, appended = ShardWriter.append, []

    def killed(self, columns, rows, *more, **named):
        if len(appended) == 2:
            raise KeyboardInterrupt
        append(self, columns, rows, *more, **named)
        appended.append(len(rows))

    monkeypatch.setattr(ShardWriter, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        make(reranker, videos, tmp_path / "again")
    assert max(appended) <= 2
    monkeypatch.setattr(ShardWriter, "append", append)
    again = Store(make(reranker, videos, tmp_path / "again"))
    assert content(again).keys() == content(Store(index)).keys()
    for own, expected in zip(content(again).values(), content(Store(index)).values(), strict=True):
        assert own[:4] == expected[:4]


def test_changes_removals_and_merges_carry_strips_and_times(
    index, videos, reranker, tmp_path, monkeypatch
):
    folder, out = tmp_path / "videos", tmp_path / "index"
    shutil.copytree(videos, folder)
    shutil.copytree(index, out)
    for name in os.listdir(folder):
        os.utime(folder / name, ns=(0, 0))  # Stamps differ, digests do not
    write_video(folder / "d.avi", "mpeg4", 4)
    write_video(folder / "e.mov", "mpeg4", 8)
    expected = content(Store(index))
    make(reranker, folder, out)
    store = Store(out)
    grown = content(store)
    assert {name for name in grown if grown[name] != expected.get(name)} == {"d.avi", "e.mov"}
    row = store.row(store.image_of_id["a.mp4"])
    assert row.stamp == file_stamp(str(folder / "a.mp4")), "its row was written anew"

    remove(out, ["a.mp4"])
    assert compact(out) == 2 and list(verify(out)) == []
    del grown["a.mp4"]
    assert content(Store(out)) == grown
    assert compact(out) == 0


def test_an_index_of_images_has_neither(trained, tmp_path):
    reranker, spec = Reranker.from_pretrained(trained), "shapes:val"
    shapes = open_source(spec)
    few = type("Few", (type(shapes),), {"__len__": lambda _: 2})("val")
    build(reranker.runtime, reranker.stamp, few, spec, tmp_path / "index")
    store = Store(tmp_path / "index")
    assert store.frames == 0
    for ask in (store.strip, store.frame_times, store.video_length):
        with pytest.raises(BadStore):
            ask(0)
    lines = next((tmp_path / "index").glob("rows-*.jsonl")).read_text().splitlines()
    assert "strip" not in json.loads(lines[0])


def test_strips_are_as_wide_as_a_file_may_be():
    frames = [Image.new("RGB", (256, 8))] * 90
    assert strip_of(frames).size == (90 * (60_000 // 90), STRIP)
    assert strip_of([Image.new("RGB", (1, 256))]).size == (1, STRIP)
