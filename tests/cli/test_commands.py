import dataclasses

import pytest
import tyro

from edje_jax.cli.commands import data, demo, index, models, search
from edje_jax.cli.edje import COMMANDS
from edje_jax.cli.eval_options import Options

CLASSES = [Options] + [
    found
    for module in (data, demo, index, models, search)
    for found in vars(module).values()
    if dataclasses.is_dataclass(found)
]


@pytest.mark.parametrize("command", CLASSES, ids=lambda command: command.__name__)
def test_an_option_that_is_not_given_is_none(command):
    defaults = {field.name: field.default for field in dataclasses.fields(command)}
    zeros = {name for name, default in defaults.items() if default in ("", 0, -1)}
    assert not {name for name in zeros if not isinstance(defaults[name], bool)} - {"workers"}


def test_a_text_may_be_the_word_none():
    def parsed(*arguments):
        return tyro.cli(COMMANDS, args=arguments)

    assert parsed("search", "photos.index", "None").query == "None"
    assert parsed("search", "photos.index").query is None
    assert parsed("serve", "photos.index", "--api-key", "None").api_key == "None"
    assert parsed("serve", "photos.index").api_key is None


def test_what_used_to_mean_not_given_still_does():
    stat = tyro.cli(COMMANDS, args=["data", "stat", "shapes:val", "--look-at", "0"])
    assert stat.command.look_at == 0
    tune = tyro.cli(COMMANDS, args=["tune", "a", "--data", "shapes:val", "--queries", "0"])
    assert tune.queries == 0
