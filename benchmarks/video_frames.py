"""Frames per second read from videos, beside a plain PyAV loop, and the memory that it takes.

    python benchmarks/video_frames.py [--videos 20] [--seconds 10] [--rounds 5] [--out FILE.json]

Synthetic H.264 videos of 640 x 360 pixels and 25 frames a second are written, with a keyframe every
250 frames as x264 has it, and a tenth as many that are ten times as long. Each side then reads
--frames frames of every video, uniformly, resized to 224 px by Pillow, files in the page cache. A
plain loop decodes all frames up to the last one that is wanted and keeps those, in one thread or in
FFmpeg's own. Sides take turns. Memory is the most that a new process holds while it reads a video,
more than after it has read one of a second (Linux).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import forget_peak, machine, resident_peak, timed

from edje_jax.config.frames import FrameSampling
from edje_jax.config.model import ImageRecipe
from edje_jax.data.frames import decode_frames
from edje_jax.data.image_reader import cut_into, read_frames
from edje_jax.data.images import resize
from edje_jax.data.sources.registry import open_source

WIDTH, HEIGHT, RATE, KEYFRAMES = 640, 360, 25, 250
RECIPE = ImageRecipe(size=224)
BATCH = 8
"""Videos of a batch."""


def main() -> None:
    """Write the videos, time all sides, print a table, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--videos", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=10, help="length of short videos")
    parser.add_argument("--frames", type=int, default=8, help="frames that are read of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    load = [os.getloadavg()[0]]
    sampling = FrameSampling(options.frames)
    lengths = {options.seconds: options.videos, 10 * options.seconds: max(options.videos // 10, 1)}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {
            seconds: write_videos(Path(temporary) / f"{seconds}", count, seconds)
            for seconds, count in lengths.items()
        }
        (tiny,) = write_videos(Path(temporary) / "tiny", 1, 1).iterdir()
        memory = {
            f"{seconds} s": memory_of(tiny, min(folder.iterdir()), sampling)
            for seconds, folder in folders.items()
        }
        rates = {
            f"{seconds} s": {
                name: rate(lengths[seconds] * options.frames, taken)
                for name, taken in timed(sides(folder, sampling), options.rounds).items()
            }
            for seconds, folder in folders.items()
        }
    load.append(os.getloadavg()[0])
    print_tables(rates, memory)
    if options.out:
        result = {
            "machine": machine(),
            "av": av.__version__,
            "load average at the start and the end, this work included": load,
            "videos by seconds": lengths, "frames of each": options.frames,
            "size": [WIDTH, HEIGHT], "side": RECIPE.size,
            "frames from a keyframe to the next": KEYFRAMES,
            "frames per second": rates,
            "memory": memory,
        }  # fmt: skip
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def write_videos(folder: Path, count: int, seconds: int) -> Path:
    """Write so many videos of so many seconds into a folder."""
    folder.mkdir()
    for seed in range(count):
        write_video(folder / f"{seed:04d}.mp4", seconds, seed)
    return folder


def write_video(path: Path, seconds: int, seed: int) -> None:
    """Write a video of a window that wanders over coloured tiles."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (24, 40, 3), np.uint8)
    field = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = KEYFRAMES
        for i in range(RATE * seconds):
            x, y = (int((1 + np.sin(i / period)) * 150) for period in (40, 57))
            window = np.ascontiguousarray(field[y : y + HEIGHT, x : x + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(window, "rgb24")))
        container.mux(stream.encode())


def sides(folder: Path, sampling: FrameSampling) -> dict[str, Callable[[], object]]:
    """{name: reads the frames of all videos in a folder}."""
    paths = sorted(folder.iterdir())
    source = open_source(f"video:{folder}")
    batches = cut_into(range(len(source)), BATCH)
    return {
        "read_frames, threads": lambda: [
            batch.present.sum() for batch in read_frames(source, sampling, RECIPE, batches)
        ],
        "decode_frames, one thread": lambda: [
            len(decode_frames(path, sampling, RECIPE)) for path in paths
        ],
        "plain loop, one thread": lambda: [
            len(plain(path, sampling.frames, "NONE")) for path in paths
        ],
        "plain loop, threads of FFmpeg": lambda: [
            len(plain(path, sampling.frames, "AUTO")) for path in paths
        ],
    }


def plain(path: Path, wanted: int, threads: str) -> np.ndarray:
    """Frames of a video by a loop over all of them, counted by the header."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        total = stream.frames
        numbers = {int((i + 0.5) * total / wanted) for i in range(wanted)}
        kept = []
        for number, frame in enumerate(container.decode(stream)):
            if number in numbers:
                kept.append(resize(frame.to_image(), RECIPE))
            if len(kept) == wanted:
                break
    return np.stack(kept)


def memory_of(tiny: Path, path: Path, sampling: FrameSampling) -> dict[str, int]:
    """Bytes of a video's file, and those that a new process holds to read it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as process:
        held = process.submit(bytes_held, tiny, path, sampling).result()
    return {"bytes of the file": path.stat().st_size, "bytes held": held}


def bytes_held(tiny: Path, path: Path, sampling: FrameSampling) -> int:
    """Most bytes that this process holds while it reads a video more than after a tiny one."""
    decode_frames(tiny, sampling, RECIPE)  # Libraries are loaded
    forget_peak()
    before = resident_peak()
    decode_frames(path, sampling, RECIPE)
    return resident_peak() - before


def rate(count: int, seconds: list[float]) -> dict[str, float]:
    """Frames per second: of the median round, the slowest and the fastest."""
    return {
        "median": count / statistics.median(seconds),
        "least": count / max(seconds),
        "most": count / min(seconds),
    }


def print_tables(
    rates: dict[str, dict[str, dict[str, float]]], memory: dict[str, dict[str, int]]
) -> None:
    """Print what was measured."""
    table = Table("videos of", "", "frames/s", "slowest to fastest")
    for length, rows in rates.items():
        for name, row in rows.items():
            spread = f"{row['least']:,.0f} to {row['most']:,.0f}"
            table.add_row(length, name, f"{row['median']:,.0f}", spread)
    held = Table("a video of", "MB of the file", "MB held to read it")
    for length, row in memory.items():
        held.add_row(length, *(f"{value / 1e6:.1f}" for value in row.values()))
    Console().print(table, held)


if __name__ == "__main__":
    main()
