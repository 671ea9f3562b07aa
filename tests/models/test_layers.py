"""Activations: which form of GELU is computed where."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from edje_jax.models.layers import ACTIVATIONS
from edje_jax.system.platform import programs_for

X = np.linspace(-6, 6, 4001, dtype=np.float32)
EXACT = X * ndtr(X)


@pytest.mark.parametrize(
    ("platform", "dtype", "limit"),
    [
        ("cpu", jnp.float32, 1e-6),
        ("gpu", jnp.float32, 1e-6),
        ("cpu", jnp.bfloat16, 0.02),
        ("tpu", jnp.bfloat16, 0.02),
        ("gpu", jnp.bfloat16, 0.02),
    ],
)
def test_gelu_is_exact_but_for_bfloat16_on_a_gpu(platform, dtype, limit):
    with programs_for(platform):
        out = np.asarray(ACTIVATIONS["gelu"](jnp.asarray(X, dtype)), np.float32)
        tanh = np.asarray(ACTIVATIONS["gelu_pytorch_tanh"](jnp.asarray(X, dtype)), np.float32)
    # Of bfloat16 the inputs are rounded, too: the slope is 1.13 at most.
    assert np.abs(out - EXACT).max() < limit
    assert np.array_equal(out, tanh) is (platform == "gpu" and dtype == jnp.bfloat16)


def test_the_tanh_form_is_as_near_as_its_docstring_says():
    tanh = np.asarray(ACTIVATIONS["gelu_pytorch_tanh"](jnp.asarray(X)))
    assert 3e-4 < np.abs(tanh - EXACT).max() < 5e-4
