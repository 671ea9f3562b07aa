"""Captioners of several settings are compared by one command, on tiny models."""

import importlib
import json
from pathlib import Path

import pytest

from edje_jax.scenes.shapes import SPLITS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def choices(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("captioner_choices")


def test_seconds_of_training_are_added_up(choices, tmp_path):
    """Thirty steps at 2 a second and ten at 5 take 17 s; lines of evaluations have no speed."""
    log = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 20, "steps_per_second": 2.0},
        {"step": 30, "steps_per_second": 2.0},
        {"step": 30, "val/base/t2i/R@1": 50.0},
        {"step": 40, "steps_per_second": 5.0},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert choices.training_seconds(log) == 17
    assert choices.training_seconds(tmp_path / "none") is None


@pytest.mark.extra
def test_one_command_compares(choices, captioner, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SPLITS, "test", 8)
    out = tmp_path / "choices.json"
    rows = ["--row", "one", str(captioner), "--row", "two", str(captioner), str(captioner)]
    asked = ["--data", "shapes:test", "--k", "4", "--queries", "6"]
    monkeypatch.setattr("sys.argv", ["captioner_choices.py", *rows, *asked, "--out", str(out)])
    choices.main()
    assert str(tmp_path) not in out.read_text()
    one, two = json.loads(out.read_text())["rows"]
    assert one["runs"][0]["upsampling"] == 2 and len(two["runs"]) == 2
    for direction in ("t2i", "i2t"):
        assert two[direction]["R@1 by seed"] == [one[direction]["R@1"]] * 2
        assert one[direction]["R@1 less"] == {}
        assert two[direction]["R@1 less"] == {"one": {"mean": 0.0, "interval": [0.0, 0.0]}}
        assert one[direction]["queries"] == 6
        assert one[direction]["R@1"] <= one[direction]["ceiling"] <= 100
    assert "+0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows, told",
    [
        ([["one"]], "give a name and at least one run"),
        ([["one", "a"], ["two", "b"], ["one", "c"]], "two rows have this name"),
    ],
)
def test_rows_that_would_be_lost_are_refused(choices, rows, told, monkeypatch, capsys):
    arguments = [part for row in rows for part in ("--row", *row)]
    monkeypatch.setattr("sys.argv", ["captioner_choices.py", *arguments, "--data", "shapes:test"])
    with pytest.raises(SystemExit):
        choices.main()
    assert told in capsys.readouterr().err
