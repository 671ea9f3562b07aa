"""Any video -> some of its frames, upright and RGB, one at a time; PyAV (FFmpeg) decodes.

A file is read twice. The first pass decodes nothing and notes when each frame is shown, so that
frames are chosen by time whatever the frame rate, and a file that is cut short shows how much of it
is there. The second pass seeks to the keyframe before each chosen frame and decodes from there.
Memory holds one frame as it is shot, and a few bytes for every frame of the video.
"""

import io
import logging
import os
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import MAX_PIXELS, BadImage, frames_of, reason_of, resize
from edje_jax.types import FRAME_TIME, FrameTime, Source

VideoLike = str | os.PathLike[str] | bytes
"""Path of a video, or the bytes of its file."""
ENDINGS = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
"""Endings of the files that are taken for videos, in lower case."""
ENOUGH = 0.5
"""Share of a video that has to be there: of the seconds that the file says it has, and of the
frames that are wanted of it."""

_FORMATS = "3gp,asf,avi,flv,matroska,mov,mp4,mpeg,mpegts,ogg,webm"
"""FFmpeg's names of the containers that are opened. Playlists, which make it open other files and
addresses, are none."""
_TURNS = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""{(a, b, c, d) of a display matrix, which moves (x, y) to (ax + cy, bx + dy): how to turn}."""

log = logging.getLogger(__name__)


def require_av() -> Any:
    """The module `av`.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError(f"videos need more ({error}); pip install 'edje-jax[video]'") from error
    return av


def read_frames(video: VideoLike, sampling: FrameSampling, name: str = "") -> Iterator[Image.Image]:
    """Frames of a video in the order in which they are shown, upright and RGB, each decoded when it
    is asked for.

    A frame that cannot be decoded is replaced by the next one that can. A video of fewer frames
    than `sampling` wants has each once. `time_of` tells when a frame is shown.

    Args:
        name: what messages call the video; by default its path.

    Raises:
        BadImage: missing, empty, no video, without a frame, of more than `MAX_PIXELS` pixels, or
            less than `ENOUGH` of it is there or can be decoded.
        ImportError: PyAV is not installed.
    """
    av = require_av()
    name = name or ("video in memory" if isinstance(video, bytes) else os.fspath(video))
    try:
        with _open(av, video) as container:
            stream = _video_stream(av, container)
            timeline = _timeline(av, container, stream)
            wanted = _choose(timeline, sampling)
            count = 0
            for frame in _decoded(av, container, stream, timeline, wanted):
                count += 1
                image = _upright(frame)
                image.info[FRAME_TIME] = timeline.place(_time(frame))
                yield image
            if count < ENOUGH * len(wanted):
                raise BadImage(f"damaged: {count} of {len(wanted)} frames can be decoded")
    except Exception as error:  # Broken files raise errors of several kinds
        raise BadImage(f"{name}: {_reason(av, error, name)}") from error


def time_of(frame: Image.Image) -> FrameTime:
    """Time of a frame in its video; an image is a frame at 0 seconds, of a video of 0 seconds."""
    return frame.info.get(FRAME_TIME, FrameTime(0.0, 0.0))


def decode_frames(
    video: VideoLike, sampling: FrameSampling, recipe: ImageRecipe, name: str = ""
) -> UInt8[np.ndarray, "f s s 3"]:
    """Frames of a video as the backbone takes them, but for `normalise`; f <= `sampling.frames`.

    Raises:
        BadImage, ImportError: see `read_frames`.
    """
    return np.stack([resize(frame, recipe) for frame in read_frames(video, sampling, name)])


def middle_frame(video: VideoLike, name: str = "") -> Image.Image:
    """Frame shown in the middle of a video, upright and RGB.

    Raises:
        BadImage, ImportError: see `read_frames`.
    """
    (frame,) = read_frames(video, FrameSampling(1), name)
    return frame


def record_frames(
    source: Source, index: int, sampling: FrameSampling, recipe: ImageRecipe
) -> UInt8[np.ndarray, "f s s 3"]:
    """Frames of an item of a source as the backbone takes them, but for `normalise`.

    An image is one frame, equal to `record_pixels`; a video has up to `sampling.frames`.

    Raises:
        BadImage: it cannot be read.
    """
    return np.stack([resize(each, recipe) for each in frames_of(source, index, sampling, recipe)])


# --- reading --------------------------------------------------------------------------------------


def _open(av: Any, video: VideoLike) -> Any:
    """Open a video; FFmpeg gets a plain file or bytes, so that no name is taken for an address."""
    allowed = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    # Titles and the like may be in any encoding.
    options: Any = {"container_options": allowed, "metadata_errors": "replace"}
    if isinstance(video, bytes):
        if not video:
            raise BadImage("the file is empty")
        return av.open(io.BytesIO(video), **options)
    path = os.path.abspath(os.path.expanduser(video))
    with open(path, "rb") as file:
        if not file.read(1):
            raise BadImage("the file is empty")
    return av.open(f"file:{path}", **options)


def _video_stream(av: Any, container: Any) -> Any:
    """The first stream of moving images; covers of music are none."""
    cover = av.stream.Disposition.attached_pic
    stream = next((one for one in container.streams.video if not one.disposition & cover), None)
    if stream is None:
        raise BadImage("no video in it")
    if stream.codec_context is None:
        raise BadImage("coded in a way that the installed FFmpeg does not know")
    if stream.width * stream.height > MAX_PIXELS:
        told = f"{stream.width} x {stream.height} pixels, more than {MAX_PIXELS:,}"
        raise BadImage(f"{told}; make it smaller")
    # Videos are decoded beside each other, each in its own thread.
    stream.codec_context.thread_count = 1
    return stream


@dataclass(frozen=True)
class _Timeline:
    """Times in which the frames of a video are shown, in the stream's unit, ascending."""

    times: Int64[np.ndarray, " n"]
    keys: Int64[np.ndarray, "k 2"]
    """Times of the keyframes, ascending, and to which time to seek for each."""
    end: int
    """Time at which the last frame is shown no more."""
    unit: float
    """Seconds of a unit."""
    start: float
    """Seconds at which the file begins, perhaps with sound, as players count."""

    def place(self, time: int | None) -> FrameTime:
        """Place of a frame by the time at which it is shown; the first one's, if it has none."""
        shown = self.times[0] if time is None else time
        seconds = (max(float(one) * self.unit - self.start, 0.0) for one in (shown, self.end))
        return FrameTime(*seconds)


def _timeline(av: Any, container: Any, stream: Any) -> _Timeline:
    """Times of all frames in the file, without decoding one.

    Raises:
        BadImage: there is no frame, or less than `ENOUGH` of the seconds that the file states.
    """
    times, keys = array("q"), array("q")
    end, reached = 0, 0.0
    units = {one.index: float(one.time_base or 0) for one in container.streams}
    # Other containers are indexed by the times at which packets are decoded.
    by_shown = "matroska" in container.format.name
    try:
        for packet in container.demux():
            time = _time(packet)
            if time is None or not packet.size:
                continue
            after = time + (packet.duration or 0)
            # A stream may appear in the middle of a file, with a unit that is not known here.
            reached = max(reached, after * units.get(packet.stream_index, 0.0))
            if packet.stream_index == stream.index and not packet.is_discard:
                times.append(time)
                end = max(end, after)
                if packet.is_keyframe:
                    keys.extend((time, time if by_shown or packet.dts is None else packet.dts))
    except av.FFmpegError as error:
        log.debug("%s: ends early (%s)", container.name, error)
    if not times:
        raise BadImage("no frame in it")
    stated = (container.duration or 0) / av.time_base
    start = (container.start_time or 0) / av.time_base
    there = reached - start
    if there < ENOUGH * stated:
        raise BadImage(f"truncated: {there:.1f} of {stated:.1f} seconds are there")
    shown = np.unique(np.frombuffer(times, np.int64))
    # Where packets have no duration, the last frame is shown as long as the others are.
    usual = int(np.median(np.diff(shown))) if len(shown) > 1 else 1
    end = end if end > shown[-1] else int(shown[-1]) + usual
    keyframes = np.frombuffer(keys, np.int64).reshape(-1, 2)
    return _Timeline(shown, np.unique(keyframes, axis=0), end, units[stream.index], start)


def _choose(timeline: _Timeline, sampling: FrameSampling) -> Int64[np.ndarray, " f"]:
    """Times of the chosen frames, ascending and different."""
    times, keys = timeline.times, timeline.keys[:, 0]
    if sampling.by == "keyframes" and len(keys):
        count = min(sampling.frames, len(keys))
        return keys[((np.arange(count) + 0.5) * len(keys) / count).astype(int)]
    length = timeline.end - times[0]
    count = sampling.parts(length * timeline.unit)
    middles = times[0] + (np.arange(count) + 0.5) * (length / count)
    return times[np.unique(np.searchsorted(times, middles, side="right") - 1)]


def _decoded(
    av: Any, container: Any, stream: Any, timeline: _Timeline, wanted: Int64[np.ndarray, " f"]
) -> Iterator[Any]:
    """Frames shown at the wanted times, or next after them; fewer where the file ends early."""
    keys = timeline.keys if len(timeline.keys) else np.repeat(timeline.times[:1, None], 2, axis=1)
    frames: Iterator[Any] = iter(())
    last = None
    for time in wanted.tolist():
        key, target = keys[max(np.searchsorted(keys[:, 0], time, side="right") - 1, 0)].tolist()
        if last is None or key > last:
            container.seek(target, stream=stream)
            frames = _frames_from_here(av, container, stream, set(wanted.tolist()))
        elif last >= time:  # Shown already, in the place of a damaged one
            continue
        for frame in frames:
            shown = _time(frame)
            last = shown if last is None else max(last, shown or last)
            if last is not None and last >= time:
                yield frame
                break


def _frames_from_here(
    av: Any, container: Any, stream: Any, wanted: Collection[int]
) -> Iterator[Any]:
    """Frames from where a container stands, but for damaged ones and those that are neither wanted
    nor needed to decode others."""
    try:
        for packet in container.demux(stream):
            time = _time(packet)
            stream.codec_context.skip_frame = "DEFAULT" if time in wanted else "NONREF"
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                log.debug("%s: a packet left out (%s)", container.name, error)
    except av.FFmpegError:  # The file ends early: what the decoder holds is whole
        yield from stream.decode(None)


def _time(frame: Any) -> int | None:
    """Time at which a frame or packet is shown, in the stream's unit."""
    return frame.dts if frame.pts is None else frame.pts


def _upright(frame: Any) -> Image.Image:
    """A frame as RGB, turned and mirrored as its display matrix says."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24", threads=1))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32) / 65536
    turn = _TURNS.get(tuple(round(each) for each in (a, b, c, d)))
    return image if turn is None else image.transpose(turn)


def _reason(av: Any, error: Exception, name: str) -> str:
    if isinstance(error, EOFError):
        return "no frame in it"
    if isinstance(error, av.FFmpegError) and not isinstance(error, OSError):
        return f"broken, truncated or no video ({error.strerror})"  # type: ignore[attr-defined]
    return reason_of(error, name)
