"""The wheel and the sdist, as users get them: `make test-wheel`.

They are built, checked, and installed with the extra `serve` into an environment that has nothing
else. Packages come from the index that pip knows, so `make test` leaves this file out.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from edje_jax.cli.demo_page import QUERY
from edje_jax.cli.serve import listen
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SECONDS = 30
"""Time from the command `edje demo` to its first answer, with nothing cached."""


def environment(folder: Path) -> dict[str, str]:
    """Variables of a user who has nothing cached and nothing set for Python or JAX."""
    ours = ("JAX_", "XLA_", "PYTHON", "TRANSFORMERS_", "HF_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def run_in(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a command that has to succeed, in a folder outside the checkout."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def new_environment(folder: Path, *packages: object) -> Path:
    """Make a virtual environment with some packages; the folder of its programs."""
    run_in(folder.parent, sys.executable, "-m", "venv", folder)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
    run_in(folder.parent, *pip, "install", "-qq", *packages)
    return folder / "bin"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the sdist, of which the wheel was built; checked by twine."""
    folder = tmp_path_factory.mktemp("build")
    tools = new_environment(folder / "tools", "build", "twine")
    run_in(folder, tools / "python", "-m", "build", "--outdir", folder / "dist", ROOT)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    run_in(folder, tools / "python", "-m", "twine", "check", "--strict", wheel, sdist)
    return wheel, sdist


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory) -> Path:
    """Programs of an environment with the wheel and its extra `serve` alone."""
    folder = tmp_path_factory.mktemp("bare")
    return new_environment(folder / "venv", f"{built[0]}[serve]")


def test_the_wheel_holds_configs_models_and_the_page_and_the_sdist_the_tests(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "edje_jax/configs/debug.py", "edje_jax/serving/page.html",
        "edje_jax/assets/shapes_demo/model.safetensors",
    } <= names  # fmt: skip
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"tests", "configs", "train.py", "LICENSE", "CHANGELOG.md"} <= tops
    assert wheel.stat().st_size < 10 << 20


def test_light_imports_and_the_command_line_work(bare, tmp_path):
    program = (
        "import sys, edje_jax; assert 'jax' not in sys.modules; from edje_jax import Reranker,"
        " ImageIndex; import importlib.util as u; print(edje_jax.__file__, u.find_spec('torch'))"
    )
    told = run_in(tmp_path, bare / "python", "-c", program).stdout
    assert str(bare.parent) in told and "None" in told
    assert "edje demo" in run_in(tmp_path, bare / "edje", "demo", "--help").stdout
    assert "debug" in run_in(tmp_path, bare / "edje", "train", "--help").stdout
    # Beside a GPU, to lack JAX's plugin for it is trouble, and exit code 1.
    doctor = [bare / "edje", "doctor"]
    done = subprocess.run(doctor, env=environment(tmp_path), capture_output=True, text=True)
    assert "extra serve" in done.stdout and not done.stderr
    run_in(tmp_path, bare / "python", "-m", "pip", "check")


def test_every_extra_can_be_installed_beside_the_others(bare, built, tmp_path):
    """Versions of all packages are chosen; nothing is installed."""
    with zipfile.ZipFile(built[0]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        told = archive.read(name).decode()
    extras = set(re.findall(r"^Provides-Extra: (\S+)", told, re.MULTILINE)) - {"test", "test-jax"}
    assert {"serve", "gpu", "onnx", "ray"} <= extras
    wanted = f"{built[0]}[{','.join(extras)}]"
    run_in(tmp_path, bare / "python", "-m", "pip", "install", "-qq", "--dry-run", wanted)


def test_the_demo_answers_a_query_in_time(bare, tmp_path):
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    began = time.monotonic()
    with (tmp_path / "log").open("w") as log:
        demo = subprocess.Popen(
            [bare / "edje", "demo", "--port", str(port)],
            cwd=tmp_path, env=environment(tmp_path), stderr=log,
        )  # fmt: skip
    try:
        while (found := answer_of(port)) is None:
            assert demo.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        waited = time.monotonic() - began
        used = psutil.Process(demo.pid).cpu_times()
    finally:
        demo.terminate()
        assert demo.wait(60) == 0
    assert found["results"][0]["id"] == "shapes-test-000037"
    # Of a machine that does other work as well, processor time tells how long an idle one takes.
    assert min(waited, used.user + used.system) < SECONDS
    told = (tmp_path / "log").read_text()
    assert f"http://127.0.0.1:{port}" in told and "PyTorch" not in told


def answer_of(port: int) -> dict | None:
    """Answer of the demo to the query that it tells one to try; None while it starts."""
    asked = Request(
        f"http://127.0.0.1:{port}/search",
        json.dumps({"query": QUERY, "k": 100, "top_k": 4}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urlopen(asked, timeout=120) as answer:
            return json.load(answer)
    except (URLError, ConnectionError):
        return None


def test_a_training_step_runs(bare, tmp_path):
    run_in(tmp_path, bare / "edje", "train", "debug", "--steps", "1", "--workdir", "run")
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] > 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
