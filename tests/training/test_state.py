"""Changes that every train step makes to its state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from edje_jax.training.state import apply_gradients, init_state


def test_the_average_follows_its_formula():
    optimiser, ema = optax.sgd(0.5), 0.3
    state = init_state({"w": jnp.float32([1.0, -2.0])}, optimiser, ema)
    expected = np.float64([1.0, -2.0])
    for t in range(6):
        state = apply_gradients(state, {"w": state.params["w"]}, optimiser, ema)
        decay = min(ema, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * np.asarray(state.params["w"])
        np.testing.assert_allclose(state.average["w"], expected, rtol=1e-6)
    assert state.result is state.average
    assert not np.allclose(state.average["w"], state.params["w"])


def test_none_is_kept_unless_asked_for():
    state = init_state({"w": jnp.ones(2)}, optax.sgd(0.5))
    state = apply_gradients(state, {"w": jnp.ones(2)}, optax.sgd(0.5))
    assert state.average is None and state.result is state.params
    assert len(jax.tree.leaves(state)) == 2
