"""The `edje` command: its commands, their help, and who parses their options.

Covers cli/commands/subcommand.py.
"""

import re
from typing import get_args

import pytest

from edje_jax.cli import edje
from edje_jax.cli.commands.models import Train


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        edje.main(["--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0 and edje.__doc__.splitlines()[0] in told
    names = [get_args(command)[1].name for command in get_args(edje.COMMANDS)]
    assert len(names) == 11 and {"demo", "doctor"} <= set(names)
    for name in names:
        assert re.search(rf"^\W*{name}\b", told, re.MULTILINE), name


def test_help_of_a_command_keeps_the_lines_of_its_docstring(capsys):
    with pytest.raises(SystemExit):
        edje.main(["tune", "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    start = lines.index("Examples:")
    assert lines[start + 1] == "edje tune runs/demo --data shapes:val"


def test_a_misspelt_command_is_bad_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        edje.main(["serch", "photos.index", "a red circle"])
    assert stop.value.code == 2 and "serch" in capsys.readouterr().err


def test_train_gets_its_options_as_they_are(monkeypatch):
    given = []
    monkeypatch.setattr(Train, "run", lambda self: given.append(self.arguments))
    assert edje.main(["train", "debug", "--optim.lr", "1e-5", "--help"]) == 0
    assert given == [("debug", "--optim.lr", "1e-5", "--help")]
