"""Most memory that an index of videos takes to build, for short videos and for long ones.

    python benchmarks/video_build_memory.py MODEL [--videos 16] [--seconds 10 100] [--out FILE.json]

Videos are those of `video_frames.py`: H.264, 640 x 360 pixels, 25 frames a second. Each build is a
process of its own and does what `edje index build` does; the peak is the kernel's (VmHWM), the
interpreter and the model included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from side_by_side import forget_peak, machine, resident_peak
from video_frames import write_videos

from edje_jax.data.sources.registry import open_source
from edje_jax.index.build import build
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import keep_freed_memory, use_one_heap


def main() -> None:
    """Write videos, build in processes of their own, print, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="folder of a model of videos, or of its training run")
    parser.add_argument("--videos", type=int, default=16)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(peak_of(options.model, options.one)))
        return
    builds = []
    for seconds in options.seconds:
        with tempfile.TemporaryDirectory() as folder:
            write_videos(Path(folder) / "videos", options.videos, seconds)
            one = ["--one", f"video:{folder}/videos"]
            told = subprocess.run(
                [sys.executable, __file__, options.model, *one],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
        builds.append({"video_seconds": seconds} | json.loads(told.splitlines()[-1]))
    growth = builds[-1]["peak_bytes"] / builds[0]["peak_bytes"] - 1
    result = {"machine": machine(), "builds": builds, "growth_percent": round(100 * growth, 1)}
    Console().print_json(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def peak_of(model: str, spec: str) -> dict[str, Any]:
    """Build an index of the videos in this process, and measure its peak of memory."""
    keep_freed_memory()
    use_one_heap()
    forget_peak()  # The parent's is inherited
    reranker = Reranker.from_pretrained(model)
    source = open_source(spec)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = build(reranker.runtime, reranker.stamp, source, spec, Path(folder) / "index")
    seconds = time.perf_counter() - began
    assert report is not None
    frames = len(source) * reranker.config.frames
    return {
        "videos": len(source),
        "peak_bytes": resident_peak(),
        "seconds": round(seconds, 1),
        "frames_per_second": round(frames / seconds, 1),
    }


if __name__ == "__main__":
    main()
