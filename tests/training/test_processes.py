"""Real processes on one run: two of four devices each, against one of eight and one of one."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import train
from edje_jax.training.processes import NoCluster
from tests.conftest import ROOT
from tests.real_sets import scenes, write_tar
from tests.small_runs import TINY, read_log

pytestmark = pytest.mark.slow

STEPS = 20
RUN = (
    sys.executable, "train.py", "debug", "--steps", str(STEPS), "--precision", "float32",
    "--model.backbone", str(TINY / "siglip"), "--checkpoint-every", "10",
)  # fmt: skip
STARTED: list[subprocess.Popen[str]] = []
TOLD = ("loss", "loss/match", "loss/masked_lm", "loss/text_recovery", "grad_norm")


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """A test that failed leaves no training behind, beside which the next would be slow."""
    yield
    while STARTED:
        STARTED.pop().kill()


def start(workdir: Path, devices: int, *more: str) -> subprocess.Popen[str]:
    """Start a process on so many virtual devices."""
    flags = re.sub(r"(device_count=)\d+", rf"\g<1>{devices}", os.environ["XLA_FLAGS"])
    process = subprocess.Popen(
        [*RUN, "--workdir", str(workdir), *more],
        cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    STARTED.append(process)
    return process


def start_two(workdir: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Two processes of four devices that know of each other."""
    common = ("--distributed", "auto", "--coordinator", free_address(), "--num-processes", "2")
    return [start(workdir, 4, *common, "--process-id", str(i), *more) for i in range(2)]


def free_address() -> str:
    """Address at which no program listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err


def losses(workdir: Path) -> np.ndarray:
    """[steps, figures]."""
    return np.array([[line[name] for name in TOLD] for line in read_log(workdir)])


def log_file(workdir: Path) -> int:
    """Which file the log is: a run that goes on writes another."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def await_step(
    workdir: Path, step: int, processes: list[subprocess.Popen[str]], before: int = 0
) -> None:
    """Until the log tells of a step, and is not the file that it was before."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        path = workdir / "metrics.jsonl"
        new = log_file(workdir) not in (0, before)
        if new and len(path.read_text().splitlines()) >= step:
            return
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.1)
    raise AssertionError(f"step {step} never came")


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """A finished run of one process on eight devices."""
    workdir = tmp_path_factory.mktemp("eight")
    finish(start(workdir, 8))
    return workdir


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of two processes of four devices that one's SIGTERM stopped on its way."""
    workdir = tmp_path_factory.mktemp("stopped")
    both = start_two(workdir)
    await_step(workdir, 5, both)
    both[1].send_signal(signal.SIGTERM)
    finish(*both)
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert 5 <= max(saved) == len(losses(workdir)) < STEPS
    assert not (workdir / "model").exists()
    return workdir


def test_two_processes_take_the_steps_of_one(eight, stopped):
    ours = losses(stopped)
    np.testing.assert_allclose(ours[0], losses(eight)[0], rtol=1e-5)
    np.testing.assert_allclose(ours, losses(eight)[: len(ours)], rtol=1e-4)


def test_a_run_of_two_goes_on_on_one_device(eight, stopped, tmp_path):
    workdir, done = shutil.copytree(stopped, tmp_path / "run"), len(losses(stopped))
    finish(start(workdir, 1))
    ours, theirs = losses(workdir), losses(eight)
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours[done : done + 10], theirs[done : done + 10], rtol=1e-4)


def lose(workdir: Path, killed: int) -> None:
    """Go on with a run of two until one of them is killed."""
    before, both = log_file(workdir), start_two(workdir)
    await_step(workdir, 12, both, before)
    assert_ends_when_the_other_dies(both, killed)
    assert not (workdir / "model").exists()


def test_a_process_ends_when_the_other_dies(stopped, tmp_path):
    lose(shutil.copytree(stopped, tmp_path / "run"), 1)


@pytest.mark.extra
def test_two_processes_killed_take_the_steps_of_one(eight, stopped, tmp_path):
    """A run of two that loses process 0, then process 1, then ends with its parameters split."""
    workdir = shutil.copytree(stopped, tmp_path / "run")
    for killed in (0, 1):
        lose(workdir, killed)
    finish(*start_two(workdir, "--mesh.fsdp", "4"))
    ours, theirs = losses(workdir), losses(eight)
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    names = {path.relative_to(eight) for path in (eight / "model").rglob("*")}
    assert names == {path.relative_to(workdir) for path in (workdir / "model").rglob("*")}
    assert not list(workdir.glob(".model*"))


def assert_ends_when_the_other_dies(both: list[subprocess.Popen[str]], killed: int) -> None:
    """Within a minute, and with a message."""
    both[killed].kill()
    died, left = time.monotonic(), 1 - killed
    _, err = both[left].communicate(timeout=60)
    assert both[left].returncode != 0 and time.monotonic() - died < 60
    # Of JAX's coordination, which ends the process where it stands and which process 0 leads, or
    # of what failed before.
    assert "another task died" in err or f"error: process {left}" in err
    both[killed].communicate()


def test_the_first_process_opens_the_sets_before_the_others(tmp_path):
    write_tar(tmp_path / "a.tar", [("1.png", scenes(1)[0].png), ("1.txt", b"one")])
    program = f"""
import sys, time, jax
from edje_jax.config.run import DataConfig
from edje_jax.data.sources import tar_index
from edje_jax.training import processes
from edje_jax.training.assemble import open_sets

def build(tar):
    # Longer than a collective waits
    assert processes.is_first()
    time.sleep(35)
    return made(tar)

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
made, tar_index.build = tar_index.build, build
assert len(open_sets(DataConfig(train="webdataset:{tmp_path}/a.tar"))[0]) == 1
"""
    command = [sys.executable, "-c", program, free_address()]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    finish(
        *(
            subprocess.Popen(
                [*command, str(i)], cwd=ROOT, env=env, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for i in range(2)
        )
    )  # fmt: skip


def test_processes_that_find_nobody_say_what_to_set(tmp_path):
    alone = start(tmp_path, 1, "--distributed", "auto")
    _, err = alone.communicate(timeout=120)
    assert alone.returncode == 1
    assert "--coordinator HOST:PORT, --num-processes N and its own --process-id" in err
    with pytest.raises(NoCluster, match="need --distributed auto"):
        train.main(["debug", "--workdir", str(tmp_path), "--coordinator", "localhost:1234"])
