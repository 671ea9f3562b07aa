"""Most memory that building an index takes, for few images and for many.

    python benchmarks/build_memory.py MODEL [--images 2000 20000] [--out build_memory.json]

Each build is a process of its own and does what `edje index build` does, on the built-in scenes;
the peak is the kernel's (VmHWM), the interpreter and the model included.
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

from edje_jax.index.build import build
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import keep_freed_memory, use_one_heap


class Some(Shapes):
    """The first so many scenes."""

    count = 0

    def __len__(self) -> int:
        return self.count


def main() -> None:
    """Build in processes of their own, print, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(peak_of(options.model, options.images[0])))
        return
    builds = []
    for count in options.images:
        command = [sys.executable, __file__, options.model, "--one", "--images", str(count)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        builds.append(json.loads(told.splitlines()[-1]))
    growth = builds[-1]["peak_bytes"] / builds[0]["peak_bytes"] - 1
    result = {"machine": machine(), "builds": builds, "growth_percent": round(100 * growth, 1)}
    Console().print_json(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")


def peak_of(model: str, images: int) -> dict[str, Any]:
    """Build an index in this process, and measure its peak of memory."""
    keep_freed_memory()
    use_one_heap()
    forget_peak()  # The parent's is inherited
    Some.count = images
    reranker = Reranker.from_pretrained(model)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        build(
            reranker.runtime, reranker.stamp, Some("train"), "shapes:train", Path(folder) / "index"
        )
    seconds = time.perf_counter() - began
    return {"pictures": images, "peak_bytes": resident_peak(), "seconds": round(seconds, 1)}


if __name__ == "__main__":
    main()
