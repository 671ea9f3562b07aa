"""A small set of videos of several kinds, indexed by the tiny model of videos."""

import json
from pathlib import Path

import numpy as np

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.registry import open_source
from edje_jax.index.build import build
from edje_jax.scenes.shapes import Shapes
from edje_jax.serving.service import Service
from tests.videos import grey, set_display_matrix, write_video

RED, BLUE, GREY = (220, 30, 30), (30, 30, 220), (128, 128, 128)
NAMES = {
    "red.mp4", "odd #?.webm", "turned.mp4", "large.mp4", "cut.webm", "old.avi", "gone.mp4",
    "still.png",
}  # fmt: skip
"""Ids of the set."""
LARGE, TIMES = (3840, 2160), (0, 300, 1000, 1400, 2000, 2300, 3000, 3900)
"""Size of a frame of large.mp4, and the milliseconds at which its frames are shown."""
SECONDS, RATE = 4, 10
"""Length and frames a second of its videos."""


def coloured(*colours: tuple[int, int, int]) -> list[np.ndarray]:
    """Frames of a video that shows each colour for as long as the others."""
    each = SECONDS * RATE // len(colours)
    return [np.full((48, 64, 3), one, np.uint8) for one in colours for _ in range(each)]


def video_source(folder: Path) -> Path:
    """Write the set; set.json is in the form of `blip:`, and secret.mp4 is not part of it."""
    write_video(folder / "red.mp4", "libx264", coloured(GREY, BLUE, RED, GREY), front=True)
    write_video(folder / "odd #?.webm", "libvpx", coloured(GREY, GREY, GREY, BLUE))
    write_video(folder / "turned.mp4", "libx264", coloured(BLUE, GREY, GREY, GREY), front=True)
    set_display_matrix(folder / "turned.mp4", (0, 1, -1, 0))
    write_video(
        folder / "large.mp4", "libx264", [grey(i, LARGE) for i in range(len(TIMES))],
        times=TIMES, sound=True, front=True,
    )  # fmt: skip
    whole = write_video(folder / "cut.webm", "libvpx", coloured(RED, BLUE, RED, BLUE)).read_bytes()
    (folder / "cut.webm").write_bytes(whole[: len(whole) * 4 // 5])
    write_video(folder / "old.avi", "mpeg4", coloured(RED, GREY, GREY, GREY))
    write_video(folder / "gone.mp4", "mpeg4", [grey(i, (64, 48)) for i in range(RATE)])
    Shapes("val").image(0).save(folder / "still.png")
    (folder / "secret.mp4").write_bytes((folder / "red.mp4").read_bytes())
    records = [
        {"image" if name.endswith(".png") else "video": name, "caption": f"about {name}"}
        for name in sorted(NAMES)
    ]
    (folder / "set.json").write_text(json.dumps(records))
    return folder


def served_videos(model: Path, where: Path, out: Path | None = None) -> Service:
    """Service of an index of the set in a folder, or of the videos in a tar."""
    spec = f"webdataset:{where}" if where.suffix == ".tar" else f"blip:{where / 'set.json'}"
    reranker, out = Reranker.from_pretrained(model), out or where / "index"
    assert build(reranker.runtime, reranker.stamp, open_source(spec), spec, out)
    return Service(reranker, ImageIndex.open(out))
