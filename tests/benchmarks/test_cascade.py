"""Ways to search are found and timed by one command, on tiny models."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from edje_jax.scenes.shapes import SPLITS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def cascade(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("cascade")


def test_recalls_and_costs_of_every_way(cascade):
    hits = np.zeros((2, 10), bool)
    hits[0, 3] = hits[1, 0] = True
    edje, captioner = np.zeros((2, 10)), np.zeros((2, 10))
    edje[0, 2:4] = 2.0, 1.0  # The right one is second
    captioner[0, 3], captioner[1, 9] = 5.0, 5.0  # It is first, and wrong for the other query
    steps = {"first stage": 1.0, "edje 10": 2.0, "captioner 5": 3.0, "captioner 10": 4.0}
    found = cascade.ways(hits, {"edje": edje, "captioner": captioner}, steps, 1.0)
    told = {(way.name, way.k, way.k2): (way.recall, way.milliseconds) for way in found}
    assert told == {
        ("first stage", 0, 0): (50.0, 1.0),
        ("EDJE", 10, 0): (50.0, 3.0),
        ("captioner", 10, 0): (50.0, 5.0),
        ("EDJE, then captioner", 10, 5): (100.0, 6.0),
        ("EDJE, then captioner", 10, 10): (50.0, 7.0),
    }
    assert cascade.on_front(found) == [True, False, False, True, False]
    assert cascade.pairs_per_second(steps) == {"edje": 5000.0, "captioner": 2500.0}
    # With weight 0 the captioner changes nothing.
    first = cascade.ways(hits, {"edje": edje, "captioner": captioner}, steps, 0.0)
    assert {way.recall for way in first if way.k2} == {50.0}


def test_one_command_measures_and_draws(cascade, trained, captioner, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SPLITS, "val", 10)
    out = tmp_path / "cascade.json"
    models = ["--edje", str(trained), "--captioner", str(captioner), "--data", "shapes:val"]
    few = ["--queries", "6", "--timed", "1", "--rounds", "1"]
    cascade.main([*models, *few, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["queries"] == 6 and result["images"] == 10
    assert result["models"]["captioner"]["score"] == "pmi"
    assert str(tmp_path) not in out.read_text() and "/" not in json.dumps(result["models"])
    assert {way["name"] for way in result["ways"]} == {*cascade.WAYS}
    assert all(0 <= way["recall"] <= 100 and way["milliseconds"] > 0 for way in result["ways"])
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "ms a query" in capsys.readouterr().out
