"""Frames of videos: which are read, from every container, and what is said of broken files.

Covers config/frames.py.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data import frames as frames_module
from edje_jax.data.frames import decode_frames, middle_frame, read_frames
from edje_jax.data.images import BadImage, resize
from tests.videos import TITLE, grey, number_of, set_display_matrix, write_video

RECIPE = ImageRecipe(size=16)
KINDS = [
    ("mp4", "libx264"), ("mkv", "libx264"), ("mov", "mjpeg"), ("avi", "mpeg4"), ("mp4", "mpeg4"),
    ("webm", "libvpx"), ("webm", "libvpx-vp9"), ("mpg", "mpeg2video"), ("ts", "libx264"),
    ("flv", "flv"), ("mp4", "libx265"), ("mkv", "libsvtav1"),
]  # fmt: skip
QUADRANTS = np.zeros((48, 64, 3), np.uint8)
QUADRANTS[:24, :32], QUADRANTS[:24, 32:], QUADRANTS[24:, :32] = 220, 150, 80


def numbers(video: Path | bytes, frames: int, by: str = "uniform", rate: float = 1.0) -> list[int]:
    return [number_of(frame) for frame in read_frames(video, FrameSampling(frames, by, rate))]


def has_encoder(codec: str) -> bool:
    try:
        return bool(av.codec.Codec(codec, "w"))
    except av.codec.codec.UnknownCodecError:
        return False


# --- which frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "codec"), KINDS)
def test_frames_are_those_of_a_plain_loop_in_every_container(tmp_path, ending, codec):
    if not has_encoder(codec):
        pytest.skip(f"PyAV was built without {codec}")
    path = write_video(tmp_path / f"video.{ending}", codec)
    with av.open(path) as container:
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(plain) == 20
    found = [np.asarray(frame) for frame in read_frames(path, FrameSampling(20))]
    np.testing.assert_array_equal(found, plain)
    few = [np.asarray(frame) for frame in read_frames(path, FrameSampling(4))]
    np.testing.assert_array_equal(few, [plain[number] for number in (2, 7, 12, 17)])
    assert numbers(path.read_bytes(), 4) == [2, 7, 12, 17]
    assert number_of(middle_frame(path)) == 10


def test_a_video_of_fewer_frames_has_each_once(tmp_path):
    path = write_video(tmp_path / "short.mkv", frames=3)
    assert numbers(path, 8) == [0, 1, 2]
    assert numbers(write_video(tmp_path / "one.mp4", frames=1), 8) == [0]


def test_a_rate_is_kept_up_to_the_most_frames(tmp_path):
    path = write_video(tmp_path / "video.mkv")  # Two seconds
    assert numbers(path, 16, "rate", 2.0) == [2, 7, 12, 17]
    assert numbers(path, 3, "rate", 2.0) == numbers(path, 3) == [3, 10, 16]
    assert numbers(path, 16, "rate", 0.1) == [10]


def test_keyframes_are_spread_where_there_are_too_many(tmp_path):
    path = write_video(tmp_path / "video.mp4", "libx264")
    assert numbers(path, 8, "keyframes") == [0, 5, 10, 15]
    assert numbers(path, 2, "keyframes") == [5, 15]


def test_frames_are_chosen_by_the_time_in_which_they_are_shown(tmp_path):
    """Ten frames in the first second, then one a second."""
    times = [*range(0, 1000, 100), 1000, 2000, 3000, 4000]
    for name, codec in (("vfr.mp4", "libx264"), ("vfr.mkv", "libvpx")):
        path = write_video(tmp_path / name, codec, frames=14, times=times)
        assert numbers(path, 2) == [10, 12], name
        assert number_of(middle_frame(path)) == 11, name


@pytest.mark.parametrize(
    ("settings", "told"), [({"frames": 0}, "frames 0: read"), ({"rate": 0.0}, "rate 0.0: give")]
)
def test_sampling_without_frames_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        FrameSampling(**settings)


# --- pixels ---------------------------------------------------------------------------------------


def test_frames_are_resized_as_images_are(tmp_path):
    path = write_video(tmp_path / "video.mov", "mjpeg", frames=[QUADRANTS] * 4, size=(64, 48))
    for recipe in (RECIPE, ImageRecipe(size=16, resize="crop", resample="bicubic")):
        found = decode_frames(path, FrameSampling(2), recipe)
        assert found.shape == (2, 16, 16, 3) and found.dtype == np.uint8
        np.testing.assert_array_equal(found[0], resize(middle_frame(path), recipe))


MATRICES = {
    (1, 0, 0, 1): lambda image: image,
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (-1, 0, 0, -1): lambda image: np.rot90(image, 2),
    (0, -1, 1, 0): lambda image: np.rot90(image),
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, -1, -1, 0): lambda image: np.rot90(image, 2).swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_display_matrix_turns_and_mirrors(tmp_path, matrix):
    path = write_video(tmp_path / "phone.mp4", "libx264", frames=[QUADRANTS] * 3)
    set_display_matrix(path, matrix)
    found = np.asarray(middle_frame(path)).astype(int)
    expected = MATRICES[matrix](QUADRANTS)
    assert found.shape == expected.shape
    # But for edges, which codecs blur.
    assert np.median(abs(found - expected)) <= 3 and np.mean(abs(found - expected)) < 6


def test_a_matrix_of_another_angle_is_disregarded(tmp_path):
    path = write_video(tmp_path / "tilted.mp4", "libx264", frames=[QUADRANTS] * 3)
    set_display_matrix(path, (1, 1, -1, 1))
    assert middle_frame(path).size == (64, 48)


def test_colours_are_those_of_the_video_whatever_its_colour_matrix(tmp_path):
    red = np.full((48, 64, 3), (200, 30, 40), np.uint8)
    for colorspace in (1, 5):  # BT.709, BT.601
        path = tmp_path / f"{colorspace}.mp4"
        with av.open(os.fspath(path), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.colorspace = colorspace
            frame = av.VideoFrame.from_ndarray(red, "rgb24").reformat(
                format="yuv420p", dst_colorspace=colorspace
            )
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        found = np.asarray(middle_frame(path)).reshape(-1, 3).mean(0)
        assert abs(found - (200, 30, 40)).max() < 5, colorspace


def test_4k_frames_are_read_one_at_a_time(tmp_path):
    """A short clip, decoded while the frames that were read before are gone."""
    path = write_video(tmp_path / "4k.mp4", "libx264", frames=4, size=(3840, 2160))
    assert [number_of(frame) for frame in decode_frames(path, FrameSampling(4), RECIPE)] == [
        *range(4)
    ]
    frames = read_frames(path, FrameSampling(4))
    assert next(frames).size == (3840, 2160)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory that is held")
def test_one_frame_is_held_at_a_time(tmp_path):
    """As bytes, all frames of the video would be 276 MB, and a tenth of them 27 MB."""
    images = [grey(i, (640, 480)) for i in range(3)] * 100
    path = write_video(tmp_path / "long.mkv", frames=images, rate=25)
    middle_frame(path)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    assert sum(1 for _ in read_frames(path, FrameSampling(300))) == 300
    assert resident_peak() - before < 60e6
    assert decode_frames(path, FrameSampling(30), RECIPE).nbytes == 30 * 16 * 16 * 3
    assert resident_peak() - before < 60e6


def resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def test_sound_is_not_needed_and_may_outlast_the_frames(tmp_path):
    silent, loud = tmp_path / "silent.mp4", tmp_path / "loud.mp4"
    write_video(silent, "libx264")
    write_video(loud, "libx264", sound=True)
    with av.open(loud) as container:
        assert container.streams.audio and container.duration > 2_500_000
    assert numbers(silent, 4) == numbers(loud, 4) == [2, 7, 12, 17]


# --- what cannot be read --------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["mkv", "avi", "mp4"])
def test_a_truncated_video_gives_its_frames_if_half_of_it_is_there(tmp_path, ending):
    path = write_video(tmp_path / f"whole.{ending}", "mjpeg", front=ending == "mp4")
    data = path.read_bytes()
    found = numbers(data[: len(data) * 8 // 10], 4)
    # How much is there after a cut depends on the encoder, whose bytes differ between machines.
    assert len(found) == 4 and found == sorted(set(found)) and 10 <= found[-1] < 17
    with pytest.raises(BadImage, match=r"cut: truncated: 0\.\d of \d\.\d seconds are there"):
        list(read_frames(data[: len(data) * 4 // 10], FrameSampling(4), "cut"))


def test_a_truncated_video_without_its_table_is_one_clear_error(tmp_path):
    path = write_video(tmp_path / "cut.mp4", "libx264")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadImage, match=r"^\S+cut\.mp4: broken, truncated or no video \(\w.*\)$"):
        middle_frame(path)


def test_frames_that_are_damaged_are_replaced_or_counted(tmp_path):
    path = write_video(tmp_path / "video.mkv", "mjpeg", frames=20)
    starts = [packet.pos for packet in packets(path)]
    data = bytearray(path.read_bytes())
    for number in (2, 7):
        data[starts[number] + 4 : starts[number + 1] - 20] = bytes(
            starts[number + 1] - starts[number] - 24
        )
    assert numbers(bytes(data), 4) == [3, 8, 12, 17]
    for start, end in pairwise(starts):
        data[start + 4 : end - 20] = bytes(end - start - 24)
    with pytest.raises(BadImage, match="x: damaged: 1 of 4 frames can be decoded"):
        list(read_frames(bytes(data), FrameSampling(4), "x"))


def packets(path: Path) -> list[av.Packet]:
    with av.open(path) as container:
        return [packet for packet in container.demux(video=0) if packet.size]


def test_a_video_without_frames_is_one_clear_error(tmp_path):
    path = tmp_path / "none.mkv"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    with pytest.raises(BadImage, match=r"none\.mkv: no frame in it"):
        middle_frame(path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("aac", 44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), "fltp", "mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadImage, match=r"song\.mp4: no video in it"):
        middle_frame(path)


def test_an_unknown_codec_is_named_and_a_title_in_another_encoding_does_no_harm(tmp_path):
    data = write_video(tmp_path / "video.mp4", "libx264").read_bytes()
    assert b"avc1" in data and data.count(TITLE.encode()) == 1
    titled = data.replace(TITLE.encode(), TITLE.encode().replace(b"o", b"\xf6"))
    assert numbers(titled, 4) == [2, 7, 12, 17]
    with pytest.raises(BadImage, match="coded in a way that the installed FFmpeg does not know"):
        numbers(data.replace(b"avc1", b"zzzz"), 4)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "the file is empty"),
        (b"no video at all" * 99, "broken, truncated or no video"),
        (PLAYLIST, "broken, truncated or no video"),
    ],
)
def test_other_files_are_no_videos(tmp_path, data, told):
    """Least of all a list of other files or addresses, which FFmpeg would open."""
    write_video(tmp_path / "other.mp4", "libx264")
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    for video in (path, data):
        with pytest.raises(BadImage, match=told):
            list(read_frames(video, FrameSampling(4)))


def test_paths_that_are_no_files_are_named(tmp_path):
    with pytest.raises(BadImage, match=r"gone\.mp4: no such file"):
        middle_frame(tmp_path / "gone.mp4")
    with pytest.raises(BadImage, match="a folder, not a file"):
        middle_frame(tmp_path)
    with pytest.raises(BadImage, match="a URL is not fetched: download it first"):
        middle_frame("http://localhost:9/a.mp4")


def test_videos_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    path = write_video(tmp_path / "large.mkv", frames=2)
    monkeypatch.setattr(frames_module, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(BadImage, match=r"64 x 48 pixels, more than 3,071; make it smaller"):
        middle_frame(path)
