"""Attention of plain matrix products, whole or over blocks of queries, on any device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

HIDDEN = -1e30
"""Added to the logits of what may not be attended to; finite, so that a row of nothing else is
averaged over and not NaN."""

SHORT = 192
"""Longest sequence whose logits an accelerator may keep whole: longer than the joint encoder's on
128 compressed tokens, shorter than a ViT's on 224 px."""


class AttentionCall(NamedTuple):
    """Facts of a call by which implementations accept or refuse it."""

    platform: str
    rows: int
    """Sequences of the batch."""
    queries: int
    keys: int
    head_width: int
    dtype: jnp.dtype
    masked: bool
    causal: bool
    drops: bool
    """Whether attention probabilities are dropped."""
    padding: bool = False
    """Whether the mask is known to hide last keys alone."""


def refuse_products(call: AttentionCall) -> str | None:
    """Reason not to take plain products: on an accelerator long sequences, whose logits would go
    through its memory."""
    if call.platform != "cpu" and min(call.queries, call.keys) > SHORT:
        return (
            f"would keep float32 logits of {call.queries} x {call.keys} in memory, and on"
            f" accelerators {SHORT} rows are the most"
        )
    return None


def products(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
    dropout: float,
    rng: Array | None,
    causal: bool,
) -> Float[Array, "b q h d"]:
    """Two products and a softmax between.

    On a CPU they take a third of the time of `jax.nn.dot_product_attention`, whose layout makes XLA
    transpose every operand.
    """
    positions = jnp.arange(query.shape[1]) if causal else None
    return _attend(query, key, value, mask, dropout, rng, positions)


def blocks(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
    dropout: float,
    rng: Array | None,
    causal: bool,
) -> Float[Array, "b q h d"]:
    """`products` over blocks of at most `SHORT` queries, one after the other.

    Logits of one block exist at a time; the backward pass computes them again.
    """
    batch, length, *rest = query.shape
    count = -(-length // SHORT)
    size = -(-length // count)
    padded = jnp.pad(query, ((0, 0), (0, count * size - length), (0, 0), (0, 0)))
    cut = padded.reshape(batch, count, size, *rest).swapaxes(0, 1)

    @jax.checkpoint
    def block(number: Int[Array, ""], query: Float[Array, "b s h d"]) -> Float[Array, "b s h d"]:
        positions = number * size + jnp.arange(size) if causal else None
        own = None if rng is None else jax.random.fold_in(rng, number)
        return _attend(query, key, value, mask, dropout, own, positions)

    out = jax.lax.map(lambda part: block(*part), (jnp.arange(count), cut))
    return out.swapaxes(0, 1).reshape(batch, count * size, *rest)[:, :length]


def _attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | None,
    dropout: float,
    rng: Array | None,
    positions: Int[Array, " q"] | None,
) -> Float[Array, "b q h d"]:
    """Attention whose queries see the keys up to their own position, if `positions` are given."""
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    if mask is not None:
        logits += jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]
    if positions is not None:
        earlier = jnp.arange(logits.shape[-1])[None] <= positions[:, None]
        logits += jnp.where(earlier, 0.0, HIDDEN)[None, None]
    if dropout > 0.0 and rng is not None:
        weights = jax.nn.softmax(logits, axis=-1)
        kept = jax.random.bernoulli(rng, 1.0 - dropout, weights.shape)
        out = _product(jnp.where(kept, weights / (1.0 - dropout), 0.0), value)
    else:
        out = _average(logits, value)
    return out.astype(value.dtype).swapaxes(1, 2)


@jax.custom_jvp
def _average(logits: Float[Array, "b h q k"], value: Float[Array, "b h k d"]) -> Array:
    """Values weighted by the softmax of their logits, float32.

    The weights are divided by their sum after they have met the values, where there is less to
    divide.
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    return _product(weights, value) / jnp.sum(weights, axis=-1)[..., None]


@_average.defjvp
def _average_jvp(primals, tangents):
    """Derivative through the softmax: that of the quotient above would cancel large terms."""
    return jax.jvp(lambda logits, value: _product(jax.nn.softmax(logits), value), primals, tangents)


def _product(weights: Float[Array, "b h q k"], value: Float[Array, "b h k d"]) -> Array:
    return jnp.einsum(
        "bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
