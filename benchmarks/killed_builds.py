"""Kill index builds (-9) at random moments, resume, and compare with one built straight through.

    python benchmarks/killed_builds.py MODEL [--data shapes:val] [--kills 20] [--out FILE.json]

Every build is a process of its own, `edje index build`; the moments are drawn uniformly over the
time that a straight build takes from its first byte on disk to its end, until so many builds have
been killed before they were done. Then the same command runs to its end. What must be equal is
every file, byte for byte.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from side_by_side import machine

from edje_jax.index.store import verify


def main() -> None:
    """Build, kill, resume, compare; exit 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data", default="shapes:val")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(options, Path(folder))
    Console().print_json(json.dumps(result))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["equal"] and not result["damaged"] else 1)


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole experiment in one folder."""
    straight, killed = folder / "straight", folder / "killed"
    began = time.monotonic()
    process = start(options, straight)
    while not straight.exists():
        time.sleep(0.01)
    before = time.monotonic() - began
    assert process.wait() == 0
    after = time.monotonic() - began
    random.seed(options.seed)
    moments: list[float] = []
    done = 0
    while len(moments) < options.kills:
        moment = random.uniform(before, after)
        process = start(options, killed)
        try:
            process.wait(moment)
            # Done before its moment came: the next one begins anew.
            done += 1
            shutil.rmtree(killed)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(round(moment, 3))
    assert start(options, killed).wait() == 0
    return {
        "machine": machine(),
        "data": options.data,
        "kills": len(moments),
        "killed_after_seconds": moments,
        "straight_build_seconds": round(after, 3),
        "builds_done_between_kills": done,
        "equal": not compare(straight, killed),
        "damaged": list(verify(killed)),
    }


def start(options: argparse.Namespace, out: Path) -> subprocess.Popen:
    """A build as a user starts it."""
    command = [sys.executable, "-m", "edje_jax.cli.edje", "index", "build"]
    return subprocess.Popen(
        [*command, options.model, options.data, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def compare(a: Path, b: Path) -> list[str]:
    """Files that are not equal byte for byte."""
    names = {path.name for folder in (a, b) for path in folder.iterdir() if path.is_file()}
    return sorted(
        name
        for name in names
        if not ((a / name).exists() and (b / name).exists())
        or (a / name).read_bytes() != (b / name).read_bytes()
    )


if __name__ == "__main__":
    main()
