"""Parts of a model that a run names: what is left out, and what is refused."""

import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.model import AdapterConfig
from edje_jax.config.parts import AdapterSpec, CaptionerSpec

LOCAL, SMALL = AdapterConfig("local", 0, 32), AdapterConfig("compress", 8, 32)


@pytest.mark.parametrize(
    ("spec", "start", "expected"),
    [
        (AdapterSpec(), None, AdapterConfig("compress", 64, 8192)),
        (AdapterSpec(), SMALL, SMALL),
        (AdapterSpec(), LOCAL, LOCAL),
        (AdapterSpec("local"), LOCAL, LOCAL),
        # Written by a run that named a local adapter and left its tokens at 64.
        (AdapterSpec("local"), AdapterConfig("local", 64, 32), AdapterConfig("local", 64, 32)),
        (AdapterSpec("local"), SMALL, LOCAL),
        (AdapterSpec("local", 16, 32), None, LOCAL),  # A config's number, of the kind it had
        (AdapterSpec("compress"), LOCAL, AdapterConfig("compress", 64, 32)),
        (AdapterSpec("compress", 4), LOCAL, AdapterConfig("compress", 4, 32)),
        (AdapterSpec(num_tokens=4), SMALL, AdapterConfig("compress", 4, 32)),
        (AdapterSpec("compress", 4, 64), SMALL, AdapterConfig("compress", 4, 64)),
    ],
)
def test_what_a_run_leaves_out_of_its_adapter_is_that_of_init(spec, start, expected):
    assert spec.resolve(start) == expected


def test_a_run_keeps_the_grid_and_the_captioner_of_init_unless_it_names_others():
    fine = AdapterConfig("local", 0, 32, upsampling=2)
    assert AdapterSpec().resolve(fine) == fine
    assert AdapterSpec(upsampling=1).resolve(fine) == LOCAL
    start = CaptionerConfig("forward", "mean", "stored")
    assert CaptionerSpec().resolve(start) == start
    assert CaptionerSpec(score="sum").resolve(start) == CaptionerConfig("forward", "sum", "stored")
    assert CaptionerSpec().resolve(None) == CaptionerConfig()


def test_a_number_of_tokens_is_refused_where_init_compresses_nothing():
    with pytest.raises(
        ValueError, match=r"num-tokens 4: the adapter of --init is local .*compress"
    ):
        AdapterSpec(num_tokens=4).resolve(LOCAL)
    with pytest.raises(ValueError, match=r"--model\.adapter\.num-tokens -1"):
        AdapterSpec("compress", -1)
