"""Sets of videos: folders, lists and tars, their captions, and what is said of mistakes.

Covers data/sources/video_files.py, data/sources/video_list.py, data/sources/msrvtt.py,
data/sources/vatex.py, data/sources/didemo.py and data/sources/activitynet.py.
"""

import hashlib
import io
import json
import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data.frames import record_frames
from edje_jax.data.image_reader import read_frames
from edje_jax.data.images import BadImage, decode_record, file_bytes, frames_of, is_video
from edje_jax.data.pack import pack
from edje_jax.data.sources.pooled import Pooled
from edje_jax.data.sources.registry import open_captioned, open_source
from edje_jax.data.sources.subset import Subset
from edje_jax.data.sources.video_files import VideoFolder
from edje_jax.data.stamps import digest_of, stamp_of
from edje_jax.types import HasVideos, Source
from tests.videos import grey, number_of, write_video

FOUR = FrameSampling(4)
RECIPE = ImageRecipe(size=8)
OPAQUE = ImageRecipe(size=8, transparency="white")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Videos of 20 frames, one of them in a folder of its own; to be read only."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "video0.mp4", "mjpeg")
    write_video(root / "sub" / "video1.MKV", "mjpeg")
    write_video(root / "video2.avi", "mjpeg")
    return root


def numbers(source: Source, index: int, sampling: FrameSampling = FOUR) -> list[int]:
    return [number_of(frame) for frame in frames_of(source, index, sampling)]


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


def ids(source: Source) -> list[str]:
    return [source.image_id(i) for i in range(len(source))]


# --- folders and lists ----------------------------------------------------------------------------


def test_a_folder_of_videos(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (folder / "notes.txt").touch()
    source = open_source(f"video:{folder}")
    assert ids(source) == ["sub/video1.MKV", "video0.mp4", "video2.avi"]
    assert all(source.captions(i) == () for i in range(3))
    assert f"{folder}: 3 videos (1 .mkv, 1 .mp4, 1 .avi)" in caplog.text
    assert "1 passed over: 1 .txt (notes.txt)" in caplog.text
    assert [numbers(source, i) for i in range(3)] == 3 * [[2, 7, 12, 17]]
    assert number_of(source.image(1)) == 10 and source.image(1).size == (64, 48)
    assert source.path(0) == str(folder / "sub" / "video1.MKV")
    (folder / "notes.txt").unlink()
    with pytest.raises(IndexError, match="has 3 videos, asked for 3"):
        source.frames(3, FOUR)
    with pytest.raises(ValueError, match=r"no video in it or below$"):
        open_source(f"video:{tmp_path}")


def test_without_pyav_a_set_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    list_of_one = write(tmp_path / "a.json", [{"video": "video0.mp4", "caption": "x"}])
    for spec in (f"video:{folder}", f"blip:{list_of_one}", f"didemo:{list_of_one}"):
        with pytest.raises(ImportError, match=r"pip install 'edje-jax\[video\]'"):
            open_source(spec)
    assert open_source("moving-shapes:val").is_video(0)


def test_bad_videos_of_a_folder_are_bad_records(tmp_path):
    write_video(tmp_path / "a.mkv", "mjpeg")
    write(tmp_path / "b.mp4", "")
    write(tmp_path / "c.mov", "no video" * 99)
    (batch,) = read_frames(open_source(f"video:{tmp_path}"), FOUR, RECIPE, [range(3)])
    assert batch.records == [0] and list(batch.bad) == [1, 2]
    assert batch.bad[1].endswith("b.mp4: the file is empty")
    assert "c.mov: broken, truncated or no video" in batch.bad[2]


def test_blip_lists_videos_and_images(folder, tmp_path):
    Image.fromarray(grey(30, (8, 8))).save(tmp_path / "a.png")
    entries = [
        {"video": str(folder / "video0.mp4"), "caption": ["one", "two"], "year": 2020},
        {"image": "a.png", "caption": "an image"},
        {"video": "gone.mp4", "caption": "three", "image_id": "g"},
        {"video": 5, "caption": "four"},
    ]
    source = open_captioned(f"blip:{write(tmp_path / 'all.json', entries)}")
    assert ids(source) == [str(folder / "video0.mp4"), "a.png", "g"]
    assert [is_video(source, i) for i in range(3)] == [True, False, True]
    assert source.captions(0) == ("one", "two") and source.metadata(0) == {"year": 2020}
    assert numbers(source, 0) == [2, 7, 12, 17] and numbers(source, 1) == [30]
    with pytest.raises(BadImage, match=r"gone\.mp4: no such file"):
        record_frames(source, 2, FOUR, RECIPE)
    (bad,) = source.bad
    assert bad.where.endswith("all.json: entry 3") and '"video" is a number' in bad.reason
    assert len(open_source(f"blip:{write(tmp_path / 'line.jsonl', entries[0])}")) == 1


def test_items_of_any_source_are_frames(folder, tmp_path):
    """An image is one frame, its pixels those that `record_pixels` gives."""
    Image.fromarray(grey(30, (8, 8))).save(tmp_path / "a.png")
    images, videos = open_source(f"folder:{tmp_path}"), open_source(f"video:{folder}")
    assert not isinstance(images, HasVideos) and not is_video(images, 0)
    assert record_frames(images, 0, FOUR, RECIPE).shape == (1, 8, 8, 3)
    for source, row in (
        (open_source(f"folder:{tmp_path}+video:{folder}"), 1),
        (Pooled(images, videos), 1),
        (Subset(videos, np.array([True, False, False])), 0),
    ):
        assert is_video(source, row) and numbers(source, row) == [2, 7, 12, 17]
        assert number_of(decode_record(source, row, OPAQUE)) == 10
        if row:
            assert not is_video(source, 0) and numbers(source, 0) == [30]


def test_a_video_is_told_by_its_file_and_shown_by_its_middle(folder, tmp_path):
    source = VideoFolder(folder)
    data = (folder / "video0.mp4").read_bytes()
    assert digest_of(source, 1) == hashlib.sha256(data).hexdigest()[:32]
    assert stamp_of(source, 1).startswith(f"{len(data)}-")
    assert source.encoded(1) == data
    assert number_of(Image.open(io.BytesIO(file_bytes(source, 1)))) == 10
    written, rejected = pack(source, tmp_path / "packed")
    assert not written and all("packs hold images alone" in why for why in rejected.values())
    (tmp_path / "x.mp4").touch()
    lost = VideoFolder(tmp_path)
    (tmp_path / "x.mp4").unlink()
    with pytest.raises(BadImage, match=r"x\.mp4: no such file"):
        digest_of(lost, 0)


# --- annotations ----------------------------------------------------------------------------------

MSRVTT = {
    "videos": [
        {"video_id": f"video{i}", "split": split, "category": i, "id": i}
        for i, split in enumerate(("train", "validate", "test", "train"))
    ],
    "sentences": [
        *({"video_id": f"video{i % 4}", "sen_id": i, "caption": f"sentence {i}"} for i in range(8)),
        {"caption": "of no video"},
    ],
}


def test_msrvtt_has_splits_and_lists(folder, tmp_path, caplog):
    file = write(tmp_path / "msrvtt.json", MSRVTT)
    train = open_captioned(f"msrvtt:{file}#train", str(folder))
    assert ids(train) == ["video0", "video3"]
    assert train.captions(0) == ("sentence 0", "sentence 4")
    assert train.metadata(1) == {"split": "train", "category": 3}
    assert [record.where for record in train.bad] == [f"{file}: sentence 8"]
    assert numbers(train, 0) == [2, 7, 12, 17]
    assert f"1 of 2 videos are not in {folder} (video3)" in caplog.text
    with pytest.raises(BadImage, match="video3: no such file"):
        train.image(1)
    write(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo2\nvideo1\n")
    listed = open_source(f"msrvtt:{file}#MSRVTT_train.9k.csv", str(folder))
    assert ids(listed) == ["video1", "video2"]
    assert [Path(listed.path(i)).name for i in range(2)] == ["video1.MKV", "video2.avi"]
    with pytest.raises(ValueError, match=r'no video of split "val"; there are train \(2\), vali'):
        open_source(f"msrvtt:{file}#val", str(folder))
    with pytest.raises(ValueError, match=r'no video of split ""; there are train'):
        open_source(f"msrvtt:{file}", str(folder))


def test_the_test_set_1k_a_is_a_csv(folder, tmp_path):
    text = 'key,vid_key,video_id,sentence\nret0,msr1,video1,"a man, a dog"\nret1,msr0,video0,\n'
    file = write(tmp_path / "MSRVTT_JSFUSION_test.csv", text)
    source = open_captioned(f"msrvtt:{file}", str(folder))
    assert ids(source) == ["video1", "video0"] and source.captions(0) == ("a man, a dog",)
    assert source.captions(1) == () and "line 3: caption 0 is empty" in source.caption_faults(1)
    with pytest.raises(ValueError, match=r'a CSV has no splits; leave "#test" out'):
        open_source(f"msrvtt:{file}#test", str(folder))
    write(file, "video_id\nvideo0\n")
    with pytest.raises(ValueError, match=r'no column "sentence"; .*JSFUSION_test\.csv'):
        open_source(f"msrvtt:{file}", str(folder))
    write(file, "id\nvideo0\n")
    with pytest.raises(ValueError, match='no column "video_id"'):
        open_source(f"msrvtt:{file}", str(folder))


def test_vatex_has_captions_in_two_languages(folder, tmp_path, caplog):
    clip = "Ptf_2VRj-V0_000122_000132"
    write_video(tmp_path / "clips" / f"{clip}.mp4", "mjpeg", frames=4)
    entries = [
        {"videoID": clip, "enCap": [f"a man {i}" for i in range(10)],
         "chCap": [f"一个人 {i}" for i in range(10)]},
        {"videoID": "other_000000_000010", "enCap": ["a dog", 5]},
        {"enCap": ["nobody"]},
    ]  # fmt: skip
    file = write(tmp_path / "vatex.json", entries)
    english = open_captioned(f"vatex:{file}", str(tmp_path / "clips"))
    assert ids(english) == [clip, "other_000000_000010"]
    assert english.captions(0)[9] == "a man 9" and english.captions(1) == ("a dog",)
    assert "entry 1: caption 1 is a number" in english.caption_faults(1)
    (bad,) = english.bad
    assert bad.where.endswith("vatex.json: entry 2") and "id is a null" in bad.reason
    chinese = open_source(f"vatex:{file}#zh", str(tmp_path / "clips"))
    assert chinese.captions(0)[:2] == ("一个人 0", "一个人 1")
    assert "entry 1: has no caption" in chinese.caption_faults(1)
    assert numbers(chinese, 0) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r'no captions in "fr"; there are #en and #zh'):
        open_source(f"vatex:{file}#fr")


def test_didemo_joins_the_sentences_of_a_video(folder, tmp_path):
    entries = [
        {"video": "video2.mov", "description": "a dog runs. ", "times": [[0, 0]]},
        {"video": "video0.mp4", "description": "a cat"},
        {"video": "video2.mov", "description": "it barks"},
        {"video": "video0.mp4", "description": None},
    ]
    source = open_captioned(f"didemo:{write(tmp_path / 'test.json', entries)}", str(folder))
    assert ids(source) == ["video2.mov", "video0.mp4"]
    assert source.captions(0) == ("a dog runs. it barks",) and source.captions(1) == ("a cat",)
    assert "entry 1: caption 1 is a null" in source.caption_faults(1)
    # Converted videos have another ending than the list says.
    assert source.path(0) == str(folder / "video2.avi") and numbers(source, 0) == [2, 7, 12, 17]


def test_activitynet_joins_the_sentences_of_a_video(folder, tmp_path):
    value = {
        "video1": {"duration": 2.0, "timestamps": [[0, 1], [1, 2]],
                   "sentences": ["A woman sits.", " She gets up."]},
        "sub/video1": {"sentences": ["An id may have a folder."]},
        "v_gone": {"duration": 9.5, "sentences": []},
    }  # fmt: skip
    file = write(tmp_path / "val_1.json", value)
    source = open_captioned(f"activitynet:{file}", str(folder))
    assert ids(source) == ["video1", "sub/video1", "v_gone"]
    assert source.path(0) == source.path(1)
    assert source.captions(0) == ("A woman sits. She gets up.",)
    assert source.metadata(0) == {"duration": 2.0} and numbers(source, 0) == [2, 7, 12, 17]
    assert "v_gone: has no caption" in source.caption_faults(2)


@pytest.mark.parametrize("kind", ["msrvtt", "vatex", "didemo", "activitynet"])
def test_files_of_another_form_are_refused(kind, tmp_path):
    file = write(tmp_path / "a.json", [{"image": "a.jpg", "caption": "x"}])
    split = "#train" if kind == "msrvtt" else ""
    with pytest.raises(ValueError, match=f"a.json: not the form that {kind}: reads; expected"):
        open_source(f"{kind}:{file}{split}")
    with pytest.raises(FileNotFoundError, match=f"b.json: no such file; {kind}: takes a JSON file"):
        open_source(f"{kind}:{tmp_path / 'b.json'}{split}")
    with pytest.raises(ValueError, match=f"a folder; {kind}: takes a JSON file"):
        open_source(f"{kind}:{tmp_path}{split}")


# --- tars -----------------------------------------------------------------------------------------


def test_tars_may_hold_videos(folder, tmp_path):
    png = io.BytesIO()
    Image.fromarray(grey(30, (8, 8))).save(png, "PNG")
    video = (folder / "video0.mp4").read_bytes()
    members = {
        "0.mp4": video, "0.txt": b"a video", "0.json": b'{"fps": 10}',
        "1.png": png.getvalue(), "1.txt": b"an image", "1.mp4": video,
        "2.webm": video[: len(video) // 3], "2.txt": b"a broken video",
    }  # fmt: skip
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for _ in range(2):  # Indexed, then by the index that was kept
        source = open_captioned(f"webdataset:{tmp_path}/0.tar")
        assert [is_video(source, i) for i in range(3)] == [True, False, True]
        assert numbers(source, 0) == [2, 7, 12, 17] and numbers(source, 1) == [30]
        assert number_of(source.image(0)) == number_of(decode_record(source, 0, OPAQUE)) == 10
        assert source.captions(0) == ("a video",) and source.metadata(0) == {"fps": 10}
        with pytest.raises(BadImage, match=r"0\.tar: 2: broken, truncated or no video"):
            source.image(2)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_padded_and_say_which_frames_there_are(folder, tmp_path, workers):
    write_video(tmp_path / "short.mkv", "mjpeg", frames=3)
    write(tmp_path / "zero.mp4", "")
    source = open_source(f"video:{folder}+video:{tmp_path}")
    batches = [range(0, 2), np.array([3, 2]), range(4, 5)]
    found = list(read_frames(source, FOUR, RECIPE, batches, workers))
    assert [batch.records for batch in found] == [[0, 1], [3, 2], []]
    assert [batch.frames.shape for batch in found] == [(n, 4, 8, 8, 3) for n in (2, 2, 0)]
    assert found[0].present.all() and found[1].present.tolist() == [
        [True, True, True, False], 4 * [True]
    ]  # fmt: skip
    assert [number_of(frame) for frame in found[1].frames[0, :3]] == [0, 1, 2]
    assert not found[1].frames[0, 3].any()
    assert "zero.mp4: the file is empty" in found[2].bad[4]
    for batch in found:
        for record, frames, present in zip(batch.records, batch.frames, batch.present, strict=True):
            expected = record_frames(source, record, FOUR, RECIPE)
            np.testing.assert_array_equal(frames[present], expected)
