"""Attention maps of words: attention probabilities of the adapter and of what scores pairs.

Recomputed from the same parameters beside the forward pass, which never forms them all. Text rows
of the joint encoder, and the words that a captioner's decoders predict, attend to compressed
tokens, and each compressed token has attended to the vision tokens; the product tells how much of a
word's view each patch holds. It is a view of where information may flow, not of what decides the
score.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.models.attention_plain import HIDDEN
from edje_jax.models.captioner import Captioner, reversed_places
from edje_jax.models.edje import Edje
from edje_jax.models.frames import present_rows
from edje_jax.models.layers import split_heads
from edje_jax.models.pair_scorer import PairScorer


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
    model: PairScorer,
    params: PyTree,
    ids: Int[Array, "b t"],
    vision_tokens: Float[Array, "b *f n w"],
) -> Float[Array, "b t *f g"]:
    """How a token's view of the image, or of a video's frames, is spread over the grid that the
    adapter reads: the vision tokens, or those of a finer grid; each token's shares sum to 1.

    The mean over heads and layers, through the mean over the heads of a compressing adapter; a
    local one has a token for every place of the grid. Rows of padding mean nothing.
    """
    config = model.config
    tokens, inside = _captured(model, params, "compress", {"upsampling"}, vision_tokens)
    seen = token_attention(model, params, ids, tokens)[:, :, None]
    if config.video and config.video.pooling == "mean":
        present = jnp.any(vision_tokens != 0, axis=(2, 3)).astype(seen.dtype)
        share = present / jnp.sum(present, axis=1, keepdims=True)
        seen = seen * share[:, None, :, None]
    elif config.video:
        seen = seen.reshape(*ids.shape, vision_tokens.shape[1], -1)
    if config.adapter.kind == "compress":
        grid = inside["adapter"]["upsampling"] if inside else vision_tokens
        grid = grid.reshape(-1, *grid.shape[-2:])
        vision_heads = config.backbone.vision.num_attention_heads
        drawn = jnp.mean(compressor_attention(params["adapter"], grid, vision_heads), axis=1)
        seen = jnp.einsum("btfm,bfmn->btfn", seen, drawn.reshape(len(ids), -1, *drawn.shape[1:]))
    return seen if config.video else seen[:, :, 0]


def frame_attention(
    model: PairScorer,
    params: PyTree,
    ids: Int[Array, "b t"],
    tokens: Float[Array, "b m d"],
    weights: Float[Array, " t"],
) -> Float[Array, "b f"]:
    """Share of the attention of some tokens of captions that each frame of a video gets; rows sum
    to 1, and a frame that is not there gets 0.

    Args:
        tokens: what a store keeps of videos, `config.tokens_per_frame` rows for each frame.
        weights: weight of each token of the captions; 0 leaves one out.
    """
    seen = token_attention(model, params, ids, tokens)
    rows = jnp.einsum("t,btm->bm", weights, seen)
    frames = jnp.sum(rows.reshape(len(rows), -1, model.config.tokens_per_frame), axis=-1)
    return frames / jnp.sum(frames, axis=-1, keepdims=True)


def token_attention(
    model: PairScorer, params: PyTree, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]
) -> Float[Array, "b t m"]:
    """Attention of captions' tokens to compressed tokens: `joint_attention`, or a captioner's
    `decoder_attention`."""
    if isinstance(model, Captioner):
        return decoder_attention(model, params, ids, tokens)
    assert isinstance(model, Edje)
    return joint_attention(model, params, ids, tokens)


def joint_attention(
    model: Edje, params: PyTree, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]
) -> Float[Array, "b t m"]:
    """How a text row of the joint encoder looks at the compressed tokens: the mean over heads and
    over the layers that see both sides."""
    config = model.config
    states = model.bind({"params": params}).hidden_states(ids, tokens)
    m = tokens.shape[1]
    text = jnp.pad(ids != config.joint_encoder.pad_token_id, ((0, 0), (1, 0)), constant_values=True)
    mask = jnp.concatenate([present_rows(config, tokens), text], axis=1)
    heads = config.joint_encoder.num_attention_heads
    # Counted from the end: layers that ran offline, on each side alone, come before these.
    first = config.joint_encoder.num_hidden_layers + 1 - len(states)
    layers = [
        layer_attention(params["joint_encoder"][f"layers_{i}"], x, mask, heads)[:, :, m + 1 :, :m]
        for i, x in enumerate(states[:-1], start=first)
    ]
    seen = jnp.mean(jnp.stack(layers), axis=(0, 2))
    return seen / jnp.sum(seen, axis=-1, keepdims=True)


def decoder_attention(
    model: Captioner, params: PyTree, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]
) -> Float[Array, "b t m"]:
    """Cross-attention by which a captioner predicts each token: the mean over heads, layers and
    directions. Rows of [CLS] and [SEP], which one direction alone predicts, do not sum to 1."""
    captioner, bert = model.config.captioner, model.config.joint_encoder
    assert captioner is not None
    heads, names = bert.num_attention_heads, {"cross_query", "cross_key"}
    mask = present_rows(model.config, tokens)
    _, inside = _captured(model, params, "log_probabilities", names, ids, tokens)
    seen = []
    for name in captioner.reads:
        layers = [
            probabilities(layer["cross_query"], layer.get("cross_key", tokens), heads, mask)
            for layer in inside["captioner"][name].values()
        ]
        # The row that reads a token predicts the one after it.
        read = jnp.pad(jnp.mean(jnp.stack(layers), axis=(0, 2)), ((0, 0), (1, 0), (0, 0)))
        if name == "backward":
            places = reversed_places(ids != bert.pad_token_id)
            read = jnp.take_along_axis(read, places[..., None], axis=1)
        seen.append(read)
    return jnp.mean(jnp.stack(seen), axis=0)


def _captured(
    model: PairScorer, params: PyTree, method: str, names: set[str], *inputs: Array
) -> tuple[Any, dict[str, Any]]:
    """Output of a method, and the outputs inside it of modules of these names, by their paths."""
    out, state = model.apply(
        {"params": params}, *inputs, method=method, mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name in names,
    )  # fmt: skip
    found = state.get("intermediates", {})
    return out, jax.tree.map(
        lambda calls: calls["__call__"][0], found, is_leaf=lambda node: "__call__" in node
    )


def _dense(params: PyTree, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
    return x @ params["kernel"] + params["bias"][None, None, :]
