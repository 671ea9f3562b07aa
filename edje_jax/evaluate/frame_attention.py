"""Attention of a caption's words to the frames of videos, and so the moment that they speak of.

It is computed from stored tokens alone, which is all that an index has of a video.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from edje_jax.config.model import EdjeConfig
from edje_jax.data.buckets import batches, bucket, lengths_up_to
from edje_jax.models.attention_maps import frame_attention
from edje_jax.models.token_formats import PackedTokens, unpack
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx import OnnxRuntime

BATCHES = (1, 4, 16)
"""Videos of one call of the program."""


def attended_frames(
    runtime: JaxRuntime | OnnxRuntime,
    caption: str,
    tokens: Float[np.ndarray, "n m d"] | PackedTokens,
) -> Float32[np.ndarray, "n f"]:
    """Share of the attention of a caption's words that each frame of n videos gets.

    The mean over heads and layers (`models.attention_maps`), over the pieces of each word and over
    the words; [CLS], [SEP] and padding are left out. Rows sum to 1, and a frame that is not there
    gets 0. The largest share is the moment: `attended_frames(...).argmax(axis=1)`. It is a view of
    where information may flow, not of what decides the score. Of a caption without words, frames
    that are there get equal shares.

    Args:
        runtime: one that scores by ONNX Runtime tells attention by JAX, as it encodes.
        tokens: compressed tokens as a store keeps them, m = f * `config.tokens_per_frame`.

    Raises:
        ValueError: the model keeps no tokens of single frames.
    """
    runtime = runtime.offline if isinstance(runtime, OnnxRuntime) else runtime
    check_frames(runtime.config)
    tokens = np.asarray(unpack(tokens) if isinstance(tokens, PackedTokens) else tokens, np.float32)
    places = [pieces for _, pieces in runtime.joint_tokenizer.words(caption)]
    if not places:
        return _equal_shares(runtime.config, tokens)
    longest = runtime.config.max_text_length
    length = bucket(max(map(max, places)) + 2, lengths_up_to(longest))
    ids, weights = runtime.joint_tokenizer([caption], length), np.zeros(length, np.float32)
    for pieces in places:
        weights[pieces] = 1 / len(pieces) / len(places)
    found = np.empty((len(tokens), runtime.config.frames), np.float32)
    for rows, count in batches(np.arange(len(tokens)), BATCHES):
        shares = _frame_attention(runtime.model, runtime.params, ids, tokens[rows], weights)
        found[rows[:count]] = np.asarray(shares)[:count]
    return found


def warm_frames(runtime: JaxRuntime | OnnxRuntime) -> None:
    """Compile every shape that `attended_frames` will ask for: each text length and batch size.

    Raises:
        ValueError: the model keeps no tokens of single frames.
    """
    runtime = runtime.offline if isinstance(runtime, OnnxRuntime) else runtime
    config = runtime.config
    check_frames(config)
    shape = (max(BATCHES), config.num_tokens, config.joint_encoder.hidden_size)
    tokens = np.zeros(shape, np.float32)
    for length in lengths_up_to(config.max_text_length):
        ids, weights = runtime.joint_tokenizer([""], length), np.zeros(length, np.float32)
        for size in BATCHES:
            _frame_attention(runtime.model, runtime.params, ids, tokens[:size], weights)


def check_frames(config: EdjeConfig) -> None:
    """Refuse a model that does not keep tokens of each frame.

    Raises:
        ValueError: it reads images, or keeps the mean of a video's tokens.
    """
    if not config.video:
        raise ValueError("this model reads images, which have no frames to attend to")
    if config.video.pooling != "none":
        raise ValueError(
            f"this model keeps the {config.video.pooling} of a video's frames, so that no frame can"
            ' be attended to; train one with pooling "none"'
        )


def _equal_shares(
    config: EdjeConfig, tokens: Float32[np.ndarray, "n m d"]
) -> Float32[np.ndarray, "n f"]:
    """Equal shares of the frames that are there."""
    rows = tokens.reshape(len(tokens), config.frames, -1)
    present = np.any(rows != 0, axis=-1).astype(np.float32)
    return present / np.maximum(present.sum(axis=1, keepdims=True), 1)


@partial(jax.jit, static_argnums=0)
def _frame_attention(model: Any, params: Any, ids: Any, tokens: Any, weights: Any) -> Any:
    ids = jnp.broadcast_to(ids, (len(tokens), ids.shape[1]))
    return frame_attention(model, params, ids, tokens, weights)
