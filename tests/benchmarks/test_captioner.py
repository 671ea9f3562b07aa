"""A captioner and an EDJE are compared by one command, on tiny models."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from edje_jax.scenes.shapes import SPLITS

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("captioner")


def test_mixtures_find_what_their_weights_say(benchmark):
    """The EDJE is right about the first query, the captioner about the second."""
    candidates = np.tile(np.arange(3), (2, 1))
    hits = np.array([[True, False, False], [False, True, False]])
    cosine = np.array([[0.1, 0.2, 0.9]] * 2)
    asked = benchmark.Asked(candidates, candidates, hits, cosine, np.arange(2))
    scores = {
        "edje": np.array([[9.0, 1, 2], [9, 1, 2]]),
        "both pmi": np.array([[1.0, 9, 2], [1, 9, 2]]),
    }
    scored = benchmark.Scored({"t2i": asked}, {"t2i": scores})

    def first(name: str, weights: tuple[float, float]) -> list[float]:
        return scored.found(name, weights)["t2i"][:, 0].tolist()

    assert first("mixed", (1.0, 0.0)) == first("edje", (1.0, 0.0)) == [100, 0]
    assert first("mixed", (0.0, 0.0)) == first("both pmi", (1.0, 0.0)) == [0, 100]
    assert first("base", (1.0, 0.0)) == first("mixed", (0.5, 50.0)) == [0, 0]


@pytest.mark.extra
def test_one_command_compares(benchmark, trained, captioner, monkeypatch, tmp_path, capsys):
    for split in ("val", "test"):
        monkeypatch.setitem(SPLITS, split, 8)
    out = tmp_path / "captioner.json"
    models = ["--captioner", str(captioner), "--edje", str(trained)]
    data = ["--data", "shapes:test", "--choose-on", "shapes:val", "--k", "4", "--queries", "6"]
    monkeypatch.setattr("sys.argv", ["captioner.py", *models, *data, "--out", str(out)])
    benchmark.main()
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"base", "edje", "both sum", "backward mean", "forward pmi"} < {*rows}
    assert {"edje + cosine", "captioner + cosine", "edje + captioner + cosine"} < {*rows}
    assert rows["edje"]["t2i"]["R@1 less EDJE's"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    # Images of one caption are ordered alike by all three scores.
    assert rows["both sum"]["t2i"]["R@1"] == rows["both pmi"]["t2i"]["R@1"]
    assert "R@1 less EDJE's" in capsys.readouterr().out
