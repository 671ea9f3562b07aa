"""Programs that score: captions encoded and pairs scored, in batches of a few shapes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, PyTree

from edje_jax.models.pair_scorer import PairScorer
from edje_jax.models.token_formats import PackedTokens, unpack
from edje_jax.system.platform import platform

PAIR_BATCHES = {"cpu": (1, 8, 128), "gpu": (16, 64, 256, 1024), "tpu": (16, 64, 256, 1024)}
"""Pairs scored in one call, per platform."""
CHUNKS = {"cpu": 8, "gpu": 1024, "tpu": 1024}
"""Rows whose activations exist at once. On a CPU, as many as fit in its caches, which takes a third
off the time of 128; rows that only fill a batch up cost nothing there."""

Count = int | Int[Array, ""]


def pair_batches() -> tuple[int, ...]:
    """Sizes of batches of pairs on this platform, ascending."""
    return PAIR_BATCHES[platform()]


def text_batches() -> tuple[int, ...]:
    """Sizes of batches of captions that pass the deferred layers together, ascending."""
    return tuple(sorted({1, *pair_batches()}))


@partial(jax.jit, static_argnums=0)
def encode_captions(
    model: PairScorer, params: PyTree, real: Count, ids: Int[Array, "t l"]
) -> PyTree:
    """Compute what the first `real` captions decide alone."""
    return _in_chunks(lambda ids: model.bind({"params": params}).encode_text(ids), real, ids)


@jax.jit
def gather_rows(table: PyTree, index: Int[Array, " p"]) -> PyTree:
    """Gather the encoded captions, or the tokens, of a batch of pairs from arrays on the device.

    Indexing outside of `jit` starts several programs, and starting one takes the host about as
    long as a small batch takes a GPU.
    """
    return jax.tree.map(lambda leaf: leaf[index], table)


@partial(jax.jit, static_argnums=0)
def score(
    model: PairScorer,
    params: PyTree,
    real: Count,
    text: Any,
    tokens: Any,
    similarity: Float32[Array, " p"] | None = None,
) -> Float32[Array, " p"]:
    """Match logits of the first `real` pairs of captions (ids, or encoded) and tokens."""

    def logits(rows: tuple[Any, Any, Any]) -> Array:
        text, tokens, similarity = rows
        unpacked: Any = unpack(tokens) if isinstance(tokens, PackedTokens) else tokens
        scorer = model.bind({"params": params})
        if isinstance(text, jax.Array):
            return scorer.match(text, unpacked, similarity=similarity)
        return scorer.match_encoded(text, unpacked, similarity=similarity)

    return _in_chunks(logits, real, (text, tokens, similarity))


def _in_chunks(compute: Callable[[Any], Any], real: Count, rows: Any) -> Any:
    """Compute the chunks that hold the first `real` rows; zeros stand behind them."""
    size, count = CHUNKS[platform()], len(jax.tree.leaves(rows)[0])
    if count <= size:
        return compute(rows)

    def chunk(number: Int[Array, ""]) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number * size, size), rows
        )

    def put(number: Int[Array, ""], out: Any) -> Any:
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, number * size, 0),
            out,
            compute(chunk(number)),
        )

    shapes = jax.eval_shape(lambda: compute(chunk(jnp.int32(0))))
    zeros = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, (real + size - 1) // size, put, zeros)
