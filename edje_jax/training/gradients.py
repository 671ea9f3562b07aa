"""Gradients of a loss over a batch, whole or in chunks."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from edje_jax.training.rows import Rows
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics


def gradients_of(
    loss: Callable[..., tuple[Array, Metrics]],
    compress: Callable[[PyTree, Array], Array],
    params: PyTree,
    vision_tokens: Float[Array, "b *f n w"],
    rows: Rows,
    dropout: Array,
    chunks: int,
    devices: Devices,
) -> tuple[PyTree, Metrics, Float[Array, "b m d"]]:
    """(gradients, metrics, compressed tokens) of the whole batch.

    In chunks, as in the gradient cache of arXiv 2101.06983: every row's compressed tokens are made
    first, without gradients. Then each chunk's losses give gradients of the parameters and of all
    those tokens, as its negatives lie in other chunks too. These last go back through the adapter,
    a chunk at a time.
    """
    if chunks == 1:

        def whole(params: PyTree) -> tuple[Array, tuple[Metrics, Array]]:
            tokens = devices.shard_rows(compress(params, vision_tokens))
            total, metrics = loss(params, tokens, rows, dropout)
            return total, (metrics, tokens)

        gradients, (metrics, tokens) = jax.grad(whole, has_aux=True)(params)
        return gradients, metrics, tokens

    tokens = in_chunks(partial(compress, params), vision_tokens, chunks, devices)
    tokens = tokens.astype(jnp.float32)  # As are the sums of their gradients

    def of_losses(part: Rows, number: Array) -> PyTree:
        key = jax.random.fold_in(dropout, number)
        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, tokens, part, key)

    def of_adapter(part: Array, token_gradients: Array) -> PyTree:
        made, back = jax.vjp(lambda params: compress(params, part), params)
        return back(token_gradients.astype(made.dtype))[0]

    numbers = jnp.arange(chunks)
    (gradients, token_gradients), metrics = _summed(
        of_losses, devices.to_chunks(rows, chunks), numbers
    )
    more = _summed(of_adapter, *devices.to_chunks((vision_tokens, token_gradients), chunks))
    return jax.tree.map(jnp.add, gradients, more), metrics, tokens


def _summed(function: Callable, *chunks: PyTree) -> PyTree:
    """Sum a function's results over chunks, one at a time."""
    one = jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], chunks))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    return jax.lax.scan(
        lambda sums, chunk: (jax.tree.map(jnp.add, sums, function(*chunk)), None), zeros, chunks
    )[0]


def in_chunks(function: Callable, rows: PyTree, chunks: int, devices: Devices) -> PyTree:
    """Apply a function to rows in `chunks` parts; the result is that of a single call."""
    if chunks == 1:
        return devices.shard_rows(function(rows))
    return devices.from_chunks(jax.lax.map(function, devices.to_chunks(rows, chunks)))
