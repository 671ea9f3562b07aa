"""Every benchmark can be imported, and tells its options."""

import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    path for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_benchmark_tells_its_options(script, monkeypatch, capsys):
    """In this process: its imports are read once for all."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(script), run_name="__main__")
    except ModuleNotFoundError as error:
        if error.name != "webdataset":  # The library that `data.py` compares with
            raise
        pytest.skip(str(error))
    told = capsys.readouterr().out
    assert stop.value.code == 0 and told.startswith(f"usage: {script.name}") and "--out" in told


def test_scalability_finds_what_numpy_finds(monkeypatch):
    """Vectors that come in blocks are searched as all at once; longer codes lose less."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(importlib.import_module("scalability_indexes"), "BLOCK", 100)
    scalability = importlib.import_module("scalability")
    monkeypatch.setattr(scalability, "BLOCK", 100)
    base = scalability.Synthetic(16).base(250, 20)
    blocks = list(base.blocks())
    assert [len(block) for block in blocks] == [100, 100, 50]
    flat = scalability.StreamedFlat(base.queries, 5)
    for number, block in enumerate(blocks):
        flat.add(block, 100 * number)
    expected = np.argsort(-base.queries @ np.concatenate(blocks).T, axis=1)[:, :5]
    np.testing.assert_array_equal(flat.rows, expected)
    options = scalability.parser().parse_args(["--bits", "8,512", "--graphs-up-to", "0.2k"])
    result = {"rows": [], "left_out": [], "sets": []}
    scalability.study(base, options, result)
    rows = {(row["index"], row["bits"]): row for row in result["rows"]}
    assert [*rows] == [
        ("flat", None), *((f"binary-{kind}", bits) for bits in (8, 512) for kind in ("flat", "ivf"))
    ]  # fmt: skip
    assert [row["index"] for row in result["left_out"]] == ["hnsw", *2 * ["binary-hnsw"]]
    assert rows["flat", None]["R@1"] == rows["binary-flat", 8]["R@1000"] == 100
    assert rows["binary-flat", 8]["R@1"] < rows["binary-flat", 512]["R@1"]
    assert rows["flat", None]["bytes"] == 250 * 16 * 4
    assert 250 <= rows["binary-flat", 8]["bytes"] < 250 + 100


def test_the_page_of_scalability_shows_its_results(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    report = importlib.import_module("scalability_report")
    page = (FOLDER.parent / "docs" / "scalability.md").read_text("utf-8")
    result = json.loads((FOLDER / "results" / "scalability.json").read_text("utf-8"))
    assert page == report.filled(page, result)
    assert all(f"<!-- scalability {name} -->" in page for name in report.tables(result))


def test_pages_show_their_results(monkeypatch):
    """Every table that `page_tables` knows is the one that its result file gives."""
    monkeypatch.syspath_prepend(FOLDER)
    page_tables = importlib.import_module("page_tables")
    for name in page_tables.PAGES:
        text = (FOLDER.parent / "docs" / name).read_text("utf-8")
        assert page_tables.renewed(name, text) == text, f"{name}: python benchmarks/page_tables.py"


def test_a_table_without_a_place_is_told(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    page_tables = importlib.import_module("page_tables")
    monkeypatch.setitem(page_tables.PAGES, "some.md", lambda: {"a": "| 1 |", "b": "| 2 |"})
    place = "<!-- results {0} -->\n{1}\n<!-- /results {0} -->"
    both = place.format("a", "| 0 |") + place.format("b", "")
    assert page_tables.renewed("some.md", both) == (
        place.format("a", "| 1 |") + place.format("b", "| 2 |")
    )
    unclosed = both.replace("<!-- /results b -->", "")
    for text in (place.format("a", "| 0 |"), both + place.format("c", ""), unclosed):
        with pytest.raises(ValueError, match="has places for"):
            page_tables.renewed("some.md", text)
