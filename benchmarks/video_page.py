"""Image of the search page with videos: clips of moving shapes, in a real browser.

    python benchmarks/video_page.py MODEL [--clips 60] [--query 35] [--out docs/video-page.png]

Writes clips of the test set as WebM files (VP9), indexes them with a model of videos, serves them
and asks for a caption of one of them. Needs `chromium` on the PATH, and an idle machine: the page
tells how long the search took.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import av
import numpy as np
from search_page import photograph_set

from edje_jax.config.frames import FrameSampling
from edje_jax.scenes.moving import SECONDS, MovingShapes

RATE = 24
"""Frames a second."""


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of a model of videos, or of its training run")
    parser.add_argument("--clips", type=int, default=60, help="clips of the test set")
    parser.add_argument("--query", type=int, default=35, help="clip whose caption is asked")
    parser.add_argument("--out", default="docs/video-page.png", help="PNG file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        captions = film(Path(name), options.clips)
        query = MovingShapes("test").captions(options.query)[0]
        photograph_set(options.model, captions, query, Path(options.out))


def film(folder: Path, clips: int, side: int = 192) -> Path:
    """Write clips of the test set as videos of `side` pixels; the path of clips.json of them."""
    source, records = MovingShapes("test", side), []
    for number in range(clips):
        video = f"{number:03}.webm"
        frames = source.frames(number, FrameSampling(round(RATE * SECONDS)))
        write_webm(folder / video, [np.asarray(frame) for frame in frames])
        records.append({"video": video, "caption": list(source.captions(number))})
    path = folder / "clips.json"
    path.write_text(json.dumps(records))
    return path


def write_webm(path: Path, frames: list[np.ndarray]) -> None:
    """Write frames, uint8 [s, s, 3], as a video without sound."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=RATE)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    main()
