"""Training state, and what every train step does with it."""

import flax.struct
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """What a step changes and a checkpoint keeps."""

    # As the others, no array: JAX and Orbax also fill the tree with shapes and placeholders.
    step: PyTree
    """Optimiser steps taken, int32 []."""
    params: PyTree
    """Trainable parameters, float32."""
    opt_state: PyTree


def init_state(params: PyTree, optimiser: optax.GradientTransformation) -> TrainState:
    """A state that has taken no step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))


def apply_gradients(
    state: TrainState, gradients: PyTree, optimiser: optax.GradientTransformation
) -> TrainState:
    """One optimiser step."""
    updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state)
