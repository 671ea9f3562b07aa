"""Programs in unusual surroundings: pipes that close, terminals without Unicode, no home.

Covers cli/progress.py and cli/terminal.py.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROGRAMS = {
    "edje": ["-m", "edje_jax.cli.edje", "--help"],
    "train.py": ["train.py", "--help"],
    "eval.py": ["eval.py", "--help"],
}
ODD = "café \U0001f642 ↑2 \ud83d"
"""Latin, an emoji, an arrow of the project's own tables, half of an emoji."""
SHOW = f"""
import json, logging, sys, time
from rich.console import Console
from rich.table import Table
from edje_jax.cli.program import run_program
from edje_jax.cli.progress import Bars
from edje_jax.cli.terminal import write_json
ODD = json.loads({json.dumps(json.dumps(ODD))})
def main(arguments):
    table = Table("column")
    table.add_row(ODD)
    Console().print(table)
    print(ODD)
    write_json([ODD])
    logging.info(ODD)
    with Bars() as bars:
        bars.show(ODD, 1, 2)
run_program(main)
"""
ENCODINGS = {
    "ascii:strict": {"PYTHONIOENCODING": "ascii:strict"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT} | options
    return subprocess.run([sys.executable, *arguments], env=environment, timeout=300, **options)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_closed_pipe_ends_a_program_quietly(program, closed_pipe):
    done = run(*PROGRAMS[program], stdout=closed_pipe)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("show", "unbuffered"),
    [("print('x' * 100_000)", ""), ("print('x')", "1"), ("Console().print('x')", "")],
)
def test_so_does_one_that_closes_while_a_program_writes(show, unbuffered, closed_pipe):
    code = (
        "from rich.console import Console\nfrom edje_jax.cli.program import run_program\n"
        f"run_program(lambda arguments: {show})"
    )
    done = run("-c", code, stdout=closed_pipe, env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_of_another_kind_is_a_failure():
    code = (
        "from edje_jax.cli.program import run_program\n"
        "def main(arguments): raise BrokenPipeError(32, 'Broken pipe')\nrun_program(main)"
    )
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (1, b"error: a file: broken pipe\n")


def test_where_nobody_reads_errors_the_exit_code_tells(closed_pipe):
    done = run("train.py", "no_such_config", stdout=closed_pipe, stderr=closed_pipe)
    assert done.returncode == 2


def test_standard_output_may_be_closed_from_the_start():
    done = subprocess.run(
        f"{sys.executable} train.py --help >&-", shell=True, capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written_is_an_error():
    with open("/dev/full", "w") as full:
        done = run(*PROGRAMS["train.py"], stdout=full)
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
    assert done.stderr.startswith(b"error: ") and b"no space left on device" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_under_the_c_locale(program):
    done = run(*PROGRAMS[program], env=ENCODINGS["C"])
    assert (done.returncode, done.stderr) == (0, b"")
    assert "Examples:" in done.stdout.decode("ascii") or program == "edje"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_text_can_be_shown(encoding):
    """In a table, a line, JSON, the log, and a progress bar, which rich shows where colour is
    forced."""
    done = run("-c", SHOW, env=ENCODINGS[encoding] | {"FORCE_COLOR": "1"})
    known = {"utf-8": "utf-8", "cp1252": "cp1252"}.get(encoding, "ascii")
    out, err = done.stdout.decode(known), done.stderr.decode(known)
    assert done.returncode == 0 and "Error" not in err
    expected = {
        "utf-8": "café \U0001f642 ↑2 \\ud83d",
        "cp1252": "café \\U0001f642 ^2 \\ud83d",
        "ascii": "caf\\xe9 \\U0001f642 ^2 \\ud83d",
    }[known]
    assert expected in out.splitlines() and expected in err
    assert json.loads(next(line for line in out.splitlines() if line.startswith("["))) == [ODD]


def test_arguments_and_file_names_are_any_text_under_the_c_locale(tmp_path):
    (tmp_path / "é↑.txt").write_text("x")
    path = str(tmp_path / "é↑.txt")
    code = (
        "import os\nfrom edje_jax.cli.program import run_program\n"
        "run_program(lambda arguments: print(ascii(arguments[0]), os.path.exists(arguments[0])))"
    )
    done = run("-c", code, path, env=ENCODINGS["C"])
    assert done.stdout.decode() == f"{path!a} True\n"


def set_up_in(folder: Path, **variables: str | None) -> str:
    """The compilation cache of a program that starts in a folder; what it wrote there is listed."""
    code = (
        "import os\nfrom edje_jax.cli.program import run_program\n"
        "def main(arguments):\n"
        "    import jax\n"
        "    from huggingface_hub.constants import HF_HOME\n"
        "    jax.jit(lambda x: x + 1)(1).block_until_ready()\n"
        "    print(os.environ.get('JAX_COMPILATION_CACHE_DIR'), HF_HOME)\n"
        "run_program(main)"
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME", "HF_HOME")
    }
    given = {name: value for name, value in variables.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT)} | given,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize("value", ["", "relative"])
def test_a_cache_home_that_is_no_absolute_path_leaves_the_current_folder_alone(value, tmp_path):
    (home := tmp_path / "home").mkdir()
    (here := tmp_path / "here").mkdir()
    told = set_up_in(here, HOME=str(home), XDG_CACHE_HOME=value)
    assert told == f"{home}/.cache/edje_jax/jax {home}/.cache/huggingface"
    assert (home / ".cache" / "edje_jax" / "jax").is_dir() and not list(here.iterdir())


@pytest.mark.parametrize("home", ["", "/nowhere/at/all"])
def test_without_a_home_nothing_is_kept(home, tmp_path):
    told = set_up_in(tmp_path, HOME=home)
    assert told.startswith("None ") and not list(tmp_path.iterdir())
    assert not Path("/nowhere").exists()
