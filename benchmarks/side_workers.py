"""Sides of a benchmark in processes of their own, which may be of other interpreters.

A worker reads a request a line from standard input, {"do": "about", "describe" or "run", "side":
..., "part": ...}, and answers a line of JSON: versions, a side's facts, the seconds that a part
took, or "why" there are none. A side is built when it is first asked for. Where memory does not
suffice for another one, those that were built first are dropped, and built again when they are
asked for again. A large one is always dropped when another one is asked for.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.progress import track

LARGE = 5e9
"""Bytes of memory from which on a side is large."""
Spec = dict[str, Any]
"""Name of a side in its worker's own words, JSON-ready."""


Name = TypeVar("Name", bound=Hashable)


class Side(NamedTuple):
    """Built side."""

    parts: dict[str, Callable[[], Any]]
    """Pieces of work that are timed, by name."""
    facts: dict[str, Any]
    """Sizes and versions, JSON-ready."""


def answer_requests(
    build: Callable[[Spec], Side], needed: Callable[[Spec], float], about: dict[str, Any]
) -> None:
    """Serve requests until standard input ends.

    Args:
        build: makes a side.
        needed: bytes of memory that a side will take.
        about: versions.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What libraries print goes to the terminal, not among the answers
    held: dict[str, Side] = {}
    warm: set[tuple[str, str]] = set()

    def drop(key: str) -> None:
        del held[key]
        warm.difference_update([one for one in warm if one[0] == key])
        gc.collect()

    def side(spec: Spec) -> Side:
        key, wanted = json.dumps(spec), needed(spec)
        for large in [one for one in held if one != key and needed(json.loads(one)) >= LARGE]:
            drop(large)
        if key in held:
            return held[key]
        while held and available_memory() < wanted:
            drop(next(iter(held)))
        if (free := available_memory()) < wanted:
            told = f"{wanted / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free"
            raise MemoryError(told)
        held[key] = build(spec)
        return held[key]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "about":
            return about
        one = side(request["side"])
        if request["do"] == "describe":
            return one.facts
        part, key = one.parts[request["part"]], (json.dumps(request["side"]), request["part"])
        if key not in warm:
            part()
            warm.add(key)
        began = time.perf_counter()
        part()
        return {"seconds": time.perf_counter() - began}

    for line in sys.stdin:
        try:
            told = answer(json.loads(line))
        except Exception as error:  # A row of the table, whatever it is
            first = (str(error).splitlines() or [""])[0]
            told = {"why": f"{type(error).__name__}: {first}"}
        answers.write(json.dumps(told) + "\n")


def available_memory() -> float:
    """Bytes that can still be allocated (Linux); on a GPU those of the GPU."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024.0


class Worker:
    """Process of an interpreter that calls a module's `serve`, and that by `answer_requests`, with
    settings as JSON; started when first asked, and again after it died."""

    def __init__(self, python: str, module: str, settings: Mapping[str, Any]):
        call = f"import sys; from {module} import serve; serve(sys.argv[1])"
        self._command = [python, "-c", call, json.dumps(settings)]
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer to a request; "why" there is none, if the process cannot start or dies."""
        try:
            process = self._process = self._process or self._start()
        except OSError as error:
            return {"why": f"its interpreter cannot be started: {error.strerror}"}
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self._process = None
        return {"why": f"its process ended with exit code {process.wait()}"}

    def close(self) -> None:
        """End the process."""
        if self._process:
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        here = Path(__file__).parent
        paths = str(here), str(here.parent), os.environ.get("PYTHONPATH", "")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # Workers share a GPU
        }
        return subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )


class Work(NamedTuple):
    """Part of a side that a worker times."""

    worker: Worker
    side: Spec
    part: str


def timed_in_workers(works: Mapping[Name, Work], rounds: int) -> dict[Name, dict[str, Any]]:
    """{name: facts with "seconds" of each round, or "why" there are none}.

    Each side takes its turn in every round, so that what slows the machine for a while slows all.
    It is called once before, uncounted. Where a worker lacks memory, the others are ended first.
    """
    console = Console(stderr=True)

    def ask(name: Name, what: str) -> dict[str, Any]:
        work = works[name]
        request = {"do": what, "side": work.side, "part": work.part}
        told = work.worker.ask(request)
        if told.get("why", "").startswith(MemoryError.__name__):
            for other in {one.worker for one in works.values()} - {work.worker}:
                other.close()  # It builds its sides again when it is asked again
            told = work.worker.ask(request)
        return told

    out = {name: ask(name, "describe") for name in track(works, "building", console=console)}
    for number in range(rounds):
        for name in track(works, f"round {number + 1} of {rounds}", console=console):
            if "why" in out[name]:
                continue
            told = ask(name, "run")
            if "why" in told:
                out[name] |= told
            else:
                out[name].setdefault("seconds", []).append(told["seconds"])
    return out
