"""Every benchmark can be imported, and tells its options."""

import runpy
import sys
from pathlib import Path

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
