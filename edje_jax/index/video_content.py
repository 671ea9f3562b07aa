"""Content that an index of videos keeps besides that of images: when frames are shown, and a strip
of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data.frames import time_of
from edje_jax.data.images import frames_of, resize
from edje_jax.index.manifest import FRAME_TIMES, VIDEO_LENGTH, ColumnType
from edje_jax.index.thumbnails import jpeg, shrunk
from edje_jax.types import Source

STRIP = 72
"""Height of a strip of frames in pixels."""
WIDEST = 60_000
"""Most pixels that a strip is wide; a JPEG file has at most 65,535."""


class KeptVideo(NamedTuple):
    """Strip and times of a video's frames, f of them."""

    strip: bytes
    """JPEG file of all frames, side by side."""
    times: list[float]
    """Seconds at which the frames are shown."""
    length: float
    """Seconds of the whole video."""


def decode_video(
    source: Source, record: int, sampling: FrameSampling, recipe: ImageRecipe
) -> tuple[UInt8[np.ndarray, "f s s 3"], bytes, KeptVideo]:
    """Decode an item's frames one by one, of which only small copies are kept; an image is one.

    Returns:
        (resized pixels of the frames that are there, thumbnail of the one in the middle as a JPEG
        file, strip and times).

    Raises:
        BadImage: it cannot be read.
    """
    pixels, small, places = [], [], []
    for frame in frames_of(source, record, sampling, recipe):
        pixels.append(resize(frame, recipe))
        places.append(time_of(frame))
        small.append(shrunk(frame))
    times = [place.shown for place in places]
    kept = KeptVideo(jpeg(strip_of(small)), times, places[-1].length)
    return np.stack(pixels), jpeg(small[len(small) // 2]), kept


def strip_of(frames: Sequence[Image.Image]) -> Image.Image:
    """Frames side by side, each `STRIP` pixels high and as wide as the first one is then."""
    width = round(frames[0].width * STRIP / frames[0].height)
    width = min(max(width, 1), max(WIDEST // len(frames), 1))
    strip = Image.new("RGB", (width * len(frames), STRIP))
    for place, frame in enumerate(frames):
        strip.paste(frame.resize((width, STRIP), Image.Resampling.LANCZOS), (place * width, 0))
    return strip


def video_column_types(frames: int) -> dict[str, ColumnType]:
    """Types of the columns of an index of videos of at most so many frames; none for 0."""
    if not frames:
        return {}
    return {
        FRAME_TIMES: ColumnType("float32", (frames,)),
        VIDEO_LENGTH: ColumnType("float32", ()),
    }


def video_columns(videos: Sequence[KeptVideo], frames: int) -> dict[str, np.ndarray]:
    """Columns of `video_column_types` for some videos."""
    times = np.full((len(videos), frames), np.nan, np.float32)
    for row, video in enumerate(videos):
        times[row, : len(video.times)] = video.times
    lengths = np.array([video.length for video in videos], np.float32)
    return {FRAME_TIMES: times, VIDEO_LENGTH: lengths}
