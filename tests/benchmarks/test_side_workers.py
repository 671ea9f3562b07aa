"""Sides in processes of their own are built, dropped, timed, and survive each other's deaths."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
MODULE = """
import os
import side_workers

LIVE, BUILT = [], []
side_workers.LARGE = 6
side_workers.available_memory = lambda: 10 - 4 * len(LIVE)

class Load:
    def __init__(self):
        LIVE.append(1)
        BUILT.append(1)
    def __del__(self):
        LIVE.pop()
    def __call__(self):
        print("noise")

def build(spec):
    if spec["name"] == "bad":
        raise ValueError("no such side\\nand more")
    parts = {"load": Load(), "die": lambda: os._exit(3)}
    return side_workers.Side(parts, {"built": len(BUILT)})

def serve(settings):
    side_workers.answer_requests(build, lambda spec: spec["memory"], {"settings": settings})
"""


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "loads.py").write_text(MODULE)
    worker = importlib.import_module("side_workers").Worker(sys.executable, "loads", {"k": 3})
    yield worker
    worker.close()


def request(what: str, name: str, memory: int = 4, part: str = "load") -> dict:
    return {"do": what, "side": {"name": name, "memory": memory}, "part": part}


def test_sides_are_built_once_while_memory_suffices(worker):
    assert worker.ask({"do": "about"}) == {"settings": '{"k": 3}'}
    assert [worker.ask(request("describe", name))["built"] for name in "abab"] == [1, 2, 1, 2]
    # The third does not fit beside them: the first is dropped, and built again later.
    assert [worker.ask(request("describe", name))["built"] for name in "cbca"] == [3, 2, 3, 4]
    assert worker.ask(request("run", "a"))["seconds"] > 0  # What it printed is no answer
    told = worker.ask(request("describe", "huge", 11))
    assert told["why"].startswith("MemoryError: 0.0 GB of memory are needed")


def test_a_large_side_is_not_kept_beside_others(worker):
    order = (("a", 4), ("large", 6), ("large", 6), ("a", 4), ("large", 6))
    built = [worker.ask(request("describe", name, memory))["built"] for name, memory in order]
    assert built == [1, 2, 2, 1, 3]


def test_a_side_that_fails_says_why_and_others_go_on(worker):
    told = worker.ask(request("describe", "bad"))
    assert told == {"why": "ValueError: no such side"}
    told = worker.ask(request("run", "a", part="die"))
    assert told == {"why": "its process ended with exit code 3"}
    assert worker.ask(request("describe", "a")) == {"built": 1}  # In a new process


def test_every_side_takes_its_turn_and_failures_keep_their_facts(worker):
    work = importlib.import_module("side_workers").Work
    names = {"a": "load", "b": "die", "bad": "load"}
    works = {name: work(worker, {"name": name, "memory": 1}, part) for name, part in names.items()}
    told = importlib.import_module("side_workers").timed_in_workers(works, 2)
    assert len(told["a"]["seconds"]) == 2 and "why" not in told["a"]
    assert told["b"] == {"built": 2, "why": "its process ended with exit code 3"}
    assert told["bad"] == {"why": "ValueError: no such side"}
