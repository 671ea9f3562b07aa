"""Small videos, written by PyAV, in which every frame tells its number."""

import os
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 6
"""Grey levels between a frame and the next: lossy codecs keep flat grey nearly exactly."""

GOP = 5
"""Frames from a keyframe to the next."""
TITLE = "Videotitle"


def grey(number: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `number`, at most 39, uint8 [height, width, 3]."""
    return np.full((size[1], size[0], 3), 10 + STEP * number, np.uint8)


def number_of(image: Image.Image | np.ndarray) -> int:
    """Number of the frame that an image or array shows."""
    return round((float(np.mean(np.asarray(image))) - 10) / STEP)


def write_video(
    path: Path,
    codec: str = "mpeg4",
    frames: int | Sequence[np.ndarray] = 20,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    times: Sequence[int] | None = None,
    sound: bool = False,
    front: bool = False,
) -> Path:
    """Write a video; its container is that of the path's ending.

    Args:
        times: milliseconds at which each frame is shown; None for `rate` frames a second.
        sound: whether there is silence, a second longer than the frames.
        front: whether the table of an .mp4 stands first, where a truncated file keeps it.
    """
    images = [grey(i, size) for i in range(frames)] if isinstance(frames, int) else frames
    options = {"movflags": "faststart"} if front else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(os.fspath(path), "w", options=options) as container:
        container.metadata["title"] = TITLE
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = images[0].shape[1::-1]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = GOP
        if codec.startswith("libvpx"):
            stream.options = {"deadline": "realtime", "cpu-used": "8"}
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = (
            container.add_stream("aac" if path.suffix == ".mp4" else "mp3", 44_100)
            if sound
            else None
        )
        for number, pixels in enumerate(images):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            samples = 44_100 * (len(images) // rate + 1)
            silence = np.zeros((1, samples), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
            frame.sample_rate = 44_100
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # Where root runs it, this encoder takes real time for the whole process, and keeps it.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) into the track header of an .mp4, which says how it is to be turned."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    a, b, c, d = (65536 * each for each in matrix)
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
