"""Stopped and resumed equals uninterrupted, bit for bit, whatever stopped it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.small_runs import COMMAND, STEPS, read_log

ROOT = Path(__file__).parents[2]


def interrupt(workdir: Path, by: signal.Signals, ready: Callable[[], bool], *more: str) -> str:
    """Run the command in a process of its own and send it a signal as soon as `ready()`.

    SIGINT goes to its children too, as from a terminal. Returns what was written to standard error.
    """
    command = [sys.executable, "train.py", *COMMAND, "--workdir", str(workdir), *more]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    # Polled closely: once it has started, the whole run takes a second or two.
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if by == signal.SIGINT:
        os.killpg(process.pid, by)
    else:
        process.send_signal(by)
    _, told = process.communicate(timeout=120)
    assert process.returncode == (-by if by == signal.SIGKILL else 0), told
    assert read_log(workdir)[-1]["step"] < STEPS, "the signal came too late to test anything"
    assert not (workdir / "model").exists()
    return told


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def saved(workdir: Path) -> list[int]:
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def figures(workdir: Path) -> list[dict]:
    """Everything logged but the speed."""
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_second")}
        for line in read_log(workdir)
    ]


@pytest.mark.slow
def test_a_run_stopped_twice_is_the_run_that_was_not(trained, tmp_path, caplog):
    """Asked to stop, then killed between checkpoints."""
    straight = figures(trained)
    assert [line["step"] for line in straight] == list(range(1, STEPS + 1))

    worker = ("--data.workers", "1")  # Who prepares the batches may differ from run to run
    told = interrupt(tmp_path, signal.SIGINT, lambda: lines(tmp_path) >= 3, *worker)
    assert "SIGINT: saving step" in told and "Traceback" not in told
    first = lines(tmp_path)
    assert saved(tmp_path)[-1] == first >= 3
    assert figures(tmp_path) == straight[:first]

    often = ("--checkpoint-every", "3")
    told = interrupt(tmp_path, signal.SIGKILL, lambda: saved(tmp_path)[-1] > first, *often)
    assert f"resumed from {tmp_path / 'checkpoints' / str(first)}" in told
    second = saved(tmp_path)[-1]
    assert first < second < STEPS

    caplog.set_level("INFO")
    assert train.main([*COMMAND, "--workdir", str(tmp_path)]) == 0
    assert f"resumed from {tmp_path / 'checkpoints' / str(second)}" in caplog.text
    assert figures(tmp_path) == straight
    names = sorted(
        str(p.relative_to(trained)) for p in (trained / "model").rglob("*") if p.is_file()
    )
    assert "model/model.safetensors" in names and "model/backbone/model.safetensors" in names
    for name in names:
        # The card and the config say which workdir they are of.
        ours, theirs = (
            (folder / name).read_text("latin-1").replace(str(folder), "")
            for folder in (tmp_path, trained)
        )
        assert ours == theirs, name
