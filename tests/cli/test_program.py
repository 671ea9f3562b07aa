"""Behaviour that every program shares: exit codes, one-line errors, choosing a config."""

import errno
import logging
import os
import subprocess
import sys

import pytest

from edje_jax.cli.program import UsageError, run_program
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    """`run_program` sets up a process; put things back."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio", "jax")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def outcome(main, monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """(exit code, standard error) of a program."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_program(main)
    return stop.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("which one?"), 2, "error: which one?\n"),
        (ValueError("a.json: is empty"), 1, "error: a.json: is empty\n"),
        (KeyError(), 1, "error: KeyError\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (FileNotFoundError("a.json: no such file"), 1, "error: a.json: no such file\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/x/config.json"),
            1,
            "error: /runs/x/config.json: no space left on device. Free some and run the same"
            " command again\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/from", None, "/to"),
            1,
            "error: /to: no space left on device. Free some and run the same command again\n",
        ),
        (
            OSError(errno.EMFILE, "Too many open files", "/x"),
            1,
            "error: /x: too many open files. Allow more, as with ulimit -n 4096, and run the same"
            " command again\n",
        ),
        (PermissionError(errno.EACCES, "No entry", "/x"), 1, "error: /x: no entry\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_are_one_message_and_a_code(error, code, told, monkeypatch, capsys):
    assert outcome(raising(error), monkeypatch, capsys) == (code, told)


@pytest.mark.parametrize("returned", [None, 0])
def test_success_is_zero_and_silent(returned, monkeypatch, capsys):
    assert outcome(lambda arguments: returned, monkeypatch, capsys) == (0, "")


def test_debug_is_kept_from_the_program_and_shows_tracebacks(monkeypatch, capsys):
    seen = []
    outcome(lambda arguments: seen.append(arguments), monkeypatch, capsys, "a", "--debug", "b")
    assert seen == [["a", "b"]]
    monkeypatch.setattr(sys, "argv", ["program", "--debug"])
    with pytest.raises(ValueError, match="deep down"):
        run_program(raising(ValueError("deep down")))


def test_log_lines_show_after_libraries_have_set_up_their_own():
    """grain puts a handler on the root logger when it is imported, before a program starts."""
    code = (
        "import logging, grain\n"
        "from edje_jax.cli.program import run_program\n"
        "run_program(lambda arguments: logging.getLogger('edje_jax').info('hello'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.endswith(" I hello\n")
