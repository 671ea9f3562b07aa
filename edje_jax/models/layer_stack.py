"""Layers of one shape, one after the other: unrolled, or as one loop of a compiled program.

A loop is compiled once for all layers, where an unrolled program grows with their number. The
parameters are the same, `layers_0`, `layers_1`, ...; a loop stacks them inside the program, which
reads each parameter once more.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Step = Callable[[Callable[..., Array], Array], Array]
"""(a layer's `__call__`, rows) -> the rows that the next layer takes."""


def run_layers(
    module: nn.Module, layers: Sequence[nn.Module], x: Array, step: Step, scan: bool
) -> list[Array]:
    """Take `x` through layers, and return it and what each of them made of it.

    Args:
        module: module that the layers belong to.
        layers: equal but for their parameters.
        scan: whether to make them one loop. Draws of dropout differ from the unrolled ones.
    """
    if not scan or len(layers) < 2 or module.is_initializing():
        states = [x]
        for layer in layers:
            states.append(step(layer, states[-1]))
        return states
    free = layers[0].clone(parent=None, name=None)
    dropout = module.make_rng("dropout") if module.has_rng("dropout") else None

    def one(rows: Array, layer: tuple[PyTree, Array]) -> tuple[Array, Array]:
        params, number = layer
        rngs = {} if dropout is None else {"dropout": jax.random.fold_in(dropout, number)}

        def call(*args: Any) -> Any:
            return free.apply({"params": params}, *args, rngs=rngs)

        rows = step(call, rows)
        return rows, rows

    own = [module.get_variable("params", str(layer.name)) for layer in layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    last, states = jax.lax.scan(one, x, (stacked, jnp.arange(len(layers))))
    # The last state as the loop carries it, so that nobody needs the others for its sake.
    return [x, *(states[i] for i in range(len(layers) - 1)), last]
