"""Options of a second model, of a search and of an evaluation alike."""

from typing import Any

import pytest

from edje_jax.cli.commands.search import Search
from edje_jax.cli.eval_options import Options
from edje_jax.cli.program import UsageError
from edje_jax.cli.second_options import check_then

COMMANDS: dict[str, Any] = {"then_model": Search, "choose_on": Options}


@pytest.mark.parametrize("other", COMMANDS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"then_k": 5}, "--then-k: of a second model; give --then as well"),
        ({"then_weight": 1.0}, "--then-weight: of a second model"),
        ({"then_caption_score": "sum"}, "--then-caption-score: of a second model"),
        ({"then": "b", "then_k": 0}, "--then-k 0: the least is 1"),
        ({"then": "b", "then_weight": 1.5}, "--then-weight 1.5: give a number from 0 to 1"),
    ],
)
def test_options_out_of_range_or_without_a_second_model_are_refused(other, given, message):
    command = COMMANDS[other]
    named = {"index": "photos.index"} if command is Search else {}
    with pytest.raises(UsageError, match=message):
        check_then(command(**named, **given), other)
    with pytest.raises(UsageError, match=f"--{other.replace('_', '-')}: of a second model"):
        check_then(command(**named, **{other: "x"}), other)
    check_then(command(**named), other)
    check_then(command(**named, then="b", then_k=3, then_weight=0.5), other)
