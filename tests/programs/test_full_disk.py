"""A full disk, as users meet it: one line that names the path, and nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import eval as evaluation
from edje_jax.cli.program import run_program
from edje_jax.scenes.shapes import Shapes
from tests.small_disk import fill
from tests.small_runs import COMMAND

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gallery(tmp_path) -> str:
    """Six scenes on a disk with room."""
    scenes, entries = Shapes("val", image_size=32), []
    for i in range(6):
        scenes.image(i).save(tmp_path / f"{i}.png")
        entries.append({"image": f"{i}.png", "caption": scenes.captions(i)[0]})
    (tmp_path / "set.json").write_text(json.dumps(entries))
    return f"blip:{tmp_path / 'set.json'}"


def evaluate(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_program(evaluation.main)
    return stop.value.code, capsys.readouterr().err


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_evaluation(trained, gallery, small_disk, monkeypatch, capsys):
    disk = small_disk(400)
    out = disk / "eval"
    arguments = (str(trained), "--data", gallery, "--out", str(out))
    assert evaluate(monkeypatch, capsys, *arguments)[0] == 0
    earlier = content(out)
    assert set(earlier) == {
        "metrics.json", "per_query.csv", "report.html",
        "t2i.run", "t2i.base.run", "t2i.qrels", "i2t.run", "i2t.base.run", "i2t.qrels",
    }  # fmt: skip
    filled = fill(disk)
    code, told = evaluate(monkeypatch, capsys, *arguments)
    assert code == 1
    remedy = "Free some and run the same command again"
    assert told == f"error: {out / 't2i.qrels'}: no space left on device. {remedy}\n"
    assert content(out) == earlier
    filled.unlink()
    assert evaluate(monkeypatch, capsys, *arguments)[0] == 0


@pytest.mark.slow
def test_training(small_disk):
    """Checkpoints do not fit. The run is a process, as libraries write messages themselves."""
    disk = small_disk(300)
    command = [sys.executable, "train.py", *COMMAND, "--workdir", str(disk / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    # Not alone: threads of Orbax's that fail with it print what befell them.
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    # Whichever of its files met the full disk first.
    assert told[0].startswith(f"error: {disk / 'run'}/") and "Free some" in told[0]
    assert "no space left on device" in told[0].lower()
    assert not [p.name for p in (disk / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert not (disk / "run" / "model").exists()
    assert [json.loads(line) for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
