"""The joint encoder's programs: captions read and pairs scored, in batches of a few shapes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, PyTree

from edje_jax.models.edje import Edje
from edje_jax.models.joint_encoder import TextSide
from edje_jax.models.token_formats import PackedTokens, unpack

PAIR_BATCHES = {"cpu": (1, 8, 128), "gpu": (16, 64, 256, 1024), "tpu": (16, 64, 256, 1024)}
"""Pairs scored in one call, per platform."""
CHUNKS = {"cpu": 8, "gpu": 1024, "tpu": 1024}
"""Rows whose activations exist at once: on a CPU so many as its caches hold, which takes a third
off the time of 128; and what only fills a batch up costs nothing there."""

Count = int | Int[Array, ""]


def pair_batches() -> tuple[int, ...]:
    """Sizes of batches of pairs on this platform, ascending."""
    return PAIR_BATCHES[jax.default_backend()]


def text_batches() -> tuple[int, ...]:
    """Sizes of batches of captions that deferred layers read, ascending."""
    return tuple(sorted({1, *pair_batches()}))


@partial(jax.jit, static_argnums=0)
def read_texts(model: Edje, params: PyTree, real: Count, ids: Int[Array, "t l"]) -> TextSide:
    """Run the text side of the deferred layers on the first `real` captions."""
    return _in_chunks(lambda ids: model.bind({"params": params}).read_text(ids), real, ids)


@jax.jit
def repeat(texts: TextSide, place: Int[Array, " p"]) -> TextSide:
    """Captions of a batch of pairs from those that were read."""
    return jax.tree.map(lambda leaf: leaf[place], texts)


@partial(jax.jit, static_argnums=0)
def score(
    model: Edje,
    params: PyTree,
    real: Count,
    text: Any,
    tokens: Any,
    similarity: Float32[Array, " p"] | None = None,
) -> Float32[Array, " p"]:
    """Match logits of the first `real` pairs of ids, or captions read, and tokens."""

    def some(rows: tuple[Any, Any, Any]) -> Array:
        text, tokens, similarity = rows
        tokens = unpack(tokens) if isinstance(tokens, PackedTokens) else tokens
        edje = model.bind({"params": params})
        if isinstance(text, TextSide):
            return edje.match_read(text, tokens, similarity=similarity)
        return edje.match(text, tokens, similarity=similarity)

    return _in_chunks(some, real, (text, tokens, similarity))


def _in_chunks(compute: Callable[[Any], Any], real: Count, rows: Any) -> Any:
    """`compute` of the chunks that hold the first `real` rows; zeros behind them."""
    size, count = CHUNKS[jax.default_backend()], len(jax.tree.leaves(rows)[0])
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

    made = jax.eval_shape(lambda: compute(chunk(jnp.int32(0))))
    nothing = jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape[1:]), leaf.dtype), made)
    return jax.lax.fori_loop(0, (real + size - 1) // size, put, nothing)
