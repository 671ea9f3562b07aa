"""Attention maps of words: attention probabilities of the adapter and of the joint encoder.

Recomputed from the same parameters beside the forward pass, which never forms them all. Text rows
of the joint encoder attend to compressed tokens, and each compressed token has attended to the
vision tokens; the product tells how much of a word's view each patch holds. It is a view of where
information may flow, not of what decides the score.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.models.attention_plain import HIDDEN
from edje_jax.models.edje import Edje
from edje_jax.models.layers import split_heads


def probabilities(
    query: Float[Array, "b q d"],
    key: Float[Array, "b k d"],
    heads: int,
    mask: Bool[Array, "b k"] | None = None,
) -> Float[Array, "b h q k"]:
    """The softmax that `attention.attend` averages with, float32; each row sums to 1."""
    query, key = (split_heads(x, heads) for x in (query, key))
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    logits *= query.shape[-1] ** -0.5
    if mask is not None:
        logits += jnp.where(mask, 0.0, HIDDEN)[:, None, None, :]
    return jax.nn.softmax(logits, axis=-1)


def compressor_attention(
    params: PyTree, vision_tokens: Float[Array, "b n d"], heads: int
) -> Float[Array, "b h m n"]:
    """How the compressed tokens are drawn from the vision tokens; `params` are the adapter's."""
    width = vision_tokens.shape[-1]
    kernel, bias = (params["attention"][f"in_proj_{name}"] for name in ("kernel", "bias"))
    key = _dense(params["key"], vision_tokens) @ kernel[:, width : 2 * width]
    query = params["query"] @ kernel[:, :width] + bias[None, None, :width]
    query = jnp.broadcast_to(query, (len(vision_tokens), *query.shape[1:]))
    return probabilities(query, key + bias[None, None, width : 2 * width], heads)


def layer_attention(
    params: PyTree, x: Float[Array, "b n d"], mask: Bool[Array, "b n"], heads: int
) -> Float[Array, "b h n n"]:
    """Probabilities of one layer of the joint encoder, from its input `x` in memory order."""
    return probabilities(_dense(params["query"], x), _dense(params["key"], x), heads, mask)


def patch_attention(
    model: Edje, params: PyTree, ids: Int[Array, "b t"], vision_tokens: Float[Array, "b n d"]
) -> Float[Array, "b t n"]:
    """How a text row's view of the image is spread over the vision tokens; rows sum to 1.

    The mean over heads and over the layers that see both sides, through the mean over the heads of
    a compressing adapter; a local one has a token for every patch. Rows of padding mean nothing.
    """
    config = model.config
    tokens = model.bind({"params": params}).compress(vision_tokens)
    states = model.bind({"params": params}).hidden_states(ids, tokens)
    m = tokens.shape[1]
    mask = jnp.pad(
        ids != config.joint_encoder.pad_token_id, ((0, 0), (m + 1, 0)), constant_values=True
    )
    heads = config.joint_encoder.num_attention_heads
    # Counted from the end: layers that ran offline, on each side alone, come before these.
    first = config.joint_encoder.num_hidden_layers + 1 - len(states)
    layers = [
        layer_attention(params["joint_encoder"][f"layers_{i}"], x, mask, heads)[:, :, m + 1 :, :m]
        for i, x in enumerate(states[:-1], start=first)
    ]
    seen = jnp.mean(jnp.stack(layers), axis=(0, 2))
    seen /= jnp.sum(seen, axis=-1, keepdims=True)
    if config.adapter.kind == "local":
        return seen
    vision_heads = config.backbone.vision.num_attention_heads
    drawn = compressor_attention(params["adapter"], vision_tokens, vision_heads)
    return seen @ jnp.mean(drawn, axis=1)


def _dense(params: PyTree, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
    return x @ params["kernel"] + params["bias"][None, None, :]
