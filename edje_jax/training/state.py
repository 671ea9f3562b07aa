"""Training state, and what every train step does with it."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

Metrics = dict[str, Array]


@flax.struct.dataclass
class TrainState:
    """State that a step changes and a checkpoint keeps."""

    # As the others, no array: JAX and Orbax also fill the tree with shapes and placeholders.
    step: PyTree
    """Optimiser steps taken, int32 []."""
    params: PyTree
    """Trainable parameters, float32."""
    opt_state: PyTree
    average: PyTree = None
    """Running average of `params`, if one is kept."""
    queue: PyTree = None
    """Rows of the last batches that negatives come from, if they are kept (`training.queue`)."""

    @property
    def result(self) -> PyTree:
        """Parameters to evaluate and export: the average, if there is one."""
        return self.params if self.average is None else self.average


def init_state(
    params: PyTree, optimiser: optax.GradientTransformation, ema: float = 0.0
) -> TrainState:
    """A state that has taken no step; it keeps an average if `ema` is not 0."""
    # A copy, as donated buffers must not be the same.
    average = jax.tree.map(jnp.array, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params), average)


def start_from(state: TrainState, loaded: PyTree[jax.Array]) -> TrainState:
    """Lay loaded parameters over those of a state that has taken no step."""
    params = _overlay(state.params, loaded)
    if state.average is None:
        return dataclasses.replace(state, params=params)
    # Its own copy of what was loaded: the step is given both, and gives both back.
    average = _overlay(state.average, jax.tree.map(jnp.array, loaded))
    return dataclasses.replace(state, params=params, average=average)


def _overlay(params: PyTree, loaded: PyTree) -> PyTree:
    """`params` with the leaves that were loaded in their place."""
    flat = flatten_dict(params, sep="/")
    flat |= flatten_dict(loaded, sep="/")
    return unflatten_dict(flat, sep="/")


def apply_gradients(
    state: TrainState, gradients: PyTree, optimiser: optax.GradientTransformation, ema: float = 0.0
) -> TrainState:
    """Take a step of the optimiser, and one of the average.

    Its decay grows as (1 + t) / (10 + t) up to `ema`, so that the start is soon forgotten.
    """
    updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda old, new: old + (1 - decay) * (new - old), average, params)
    return TrainState(state.step + 1, params, opt_state, average, state.queue)
