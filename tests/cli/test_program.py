"""What every program shares: exit codes, one-line errors, choosing a config."""

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edje_jax.cli.program import UsageError, choose_config, config_names, run_program
from edje_jax.config.run import EdjeRun
from tests.conftest import ROOT

CONFIGS = Path(__file__).parents[2] / "configs"


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


def test_every_config_is_a_run_and_can_be_chosen():
    names = config_names(CONFIGS)
    assert {"debug", "tiny", "tiny_backbone"} <= set(names) and "__init__" not in names
    for name in names:
        chosen, config = choose_config(CONFIGS, [name, "--rest"], "usage")
        assert chosen == name and config.data.batch_size > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which config?\nusage\nconfigs: debug, "),
        (["--lr", "1"], "which config?\nusage\nconfigs: debug, "),
        (["debgu"], "no config called 'debgu'. Did you mean 'debug'?\nconfigs: "),
        (["tiny-backbone"], "Did you mean 'tiny_backbone'?"),
        (["zzz"], "no config called 'zzz'.\nconfigs: "),
        (["nowhere/mine.py"], "nowhere/mine.py: no such config file"),
    ],
)
def test_a_config_that_is_not_there(arguments, told):
    with pytest.raises(UsageError) as caught:
        choose_config(CONFIGS, arguments, "usage")
    assert told in str(caught.value)


def test_a_config_may_be_a_file_of_one_s_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from edje_jax.config.run import EdjeRun\nconfig = EdjeRun(seed=41)\n")
    assert choose_config(CONFIGS, [str(path)], "usage") == ("mine", EdjeRun(seed=41))
    path.write_text("confg = 1\n")
    with pytest.raises(UsageError, match=r"mine\.py: defines no value called `config`"):
        choose_config(CONFIGS, [str(path)], "usage")


def test_log_lines_show_after_libraries_have_set_up_their_own():
    """grain puts a handler on the root logger when it is imported, before a program starts."""
    code = (
        "import logging, grain\n"
        "from edje_jax.cli.program import run_program\n"
        "run_program(lambda arguments: logging.getLogger('edje_jax').info('hello'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr.endswith(" I hello\n")
