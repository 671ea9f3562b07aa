"""The first command of train.py's help, as it stands there, in a checkout where nothing has run.

Covers cli/train.py.
"""

import json
import shlex
import shutil
import subprocess
import sys

import pytest

from edje_jax.cli.train import help_text
from tests.conftest import ROOT


@pytest.mark.extra
def test_debug_trains_as_documented(tmp_path):
    described = help_text("python train.py").splitlines()
    line = next(line.strip() for line in described if "debug" in line)
    python, *command = shlex.split(line, comments=True)
    assert [python, *command] == ["python", "train.py", "debug"]
    shutil.copy(ROOT / "train.py", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "edje_jax").symlink_to(ROOT / "edje_jax")
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    workdir = tmp_path / "runs" / "debug"
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]
    assert len(losses) == 20 and losses[-1] < losses[0]
    assert (workdir / "model" / "model.safetensors").exists()
    # The tests give every process eight CPU devices.
    told = [line for line in done.stderr.splitlines() if " platform " in line]
    assert len(told) == 1 and told[0].endswith(
        "platform cpu · 8 devices (cpu) · computing in float32"
    )
