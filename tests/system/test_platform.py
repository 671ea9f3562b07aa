"""Programs are traced anew for another platform."""

import jax
import jax.numpy as jnp

from edje_jax.runtimes.devices import compute_dtype
from edje_jax.runtimes.scoring import PAIR_BATCHES, pair_batches
from edje_jax.system.platform import platform, programs_for


def test_the_platform_is_the_one_that_is_named():
    own = jax.default_backend()
    assert platform() == own
    with programs_for("tpu"):
        assert platform() == "tpu"
        with programs_for("gpu"):
            assert platform() == "gpu"
        assert (compute_dtype("auto"), pair_batches()) == (jnp.bfloat16, PAIR_BATCHES["tpu"])
    assert platform() == own


def test_a_program_of_one_platform_is_not_taken_for_another():
    named = jax.jit(lambda x: x + len(platform()))
    assert named(0) == len(jax.default_backend())
    with programs_for("platform"):
        assert named(0) == len("platform")
    assert named._cache_size() == 2
