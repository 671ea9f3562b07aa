"""The curves of growth are milliseconds of one query, and one command measures and draws them."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("growth")


def test_time_is_divided_by_the_number_of_queries(growth):
    points = [
        {"side": "JAX", "axis": "k", "value": 10, "seconds": [0.3, 0.1, 0.2]},
        {"side": "JAX", "axis": "queries", "value": 4, "seconds": [0.2]},
        {"side": "ONNX", "axis": "k", "value": 10, "why": "ImportError: none"},
    ]
    result = {"base": {"queries": 1}, "points": points}
    assert growth.curves(result, "k") == {"JAX": {10: pytest.approx(200)}}
    assert growth.curves(result, "queries") == {"JAX": {4: pytest.approx(50)}}


@pytest.mark.extra
def test_one_command_measures_and_draws(growth, tmp_path, capsys):
    out, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    growth.main(
        ["--tiny", "--rounds", "1", "--only", "float32", "--out", str(out), "--plot", str(plot)]
    )
    points = json.loads(out.read_text())["points"]
    assert {(point["axis"], point["value"]) for point in points} == {
        (axis, value) for axis, values in growth.TINY.items() for value in values
    }
    assert all(point["seconds"][0] > 0 for point in points)
    assert plot.stat().st_size > 10_000
    assert "concurrent queries" in capsys.readouterr().out
