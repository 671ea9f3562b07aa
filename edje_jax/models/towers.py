"""Parts that the towers of all dual encoders share."""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.config.model import TextConfig, VisionConfig
from edje_jax.models.layers import PreNormLayer


class VisionOutput(NamedTuple):
    """Outputs of one pass of a vision tower. Under jit, what is not used is not computed."""

    tokens: Float[Array, "b n d"]
    """Vision tokens: what the adapter reads, from the layer that the config names."""
    embedding: Float[Array, "b e"]
    """Pooled embedding."""
    hidden_states: tuple[Float[Array, "b n d"], ...]
    """Input of the first layer, then the output of each layer."""


def patchify(pixels: Float[Array, "b s s c"], patch: int) -> Float[Array, "b n k"]:
    """Cut pictures into flattened patches, row by row; k runs over (row, column, channel).

    What is left at the right and the bottom of a side that is no multiple of `patch` is dropped,
    as a strided convolution does (384 px in patches of 14).
    """
    b, height, width, channels = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels[:, : rows * patch, : columns * patch]
    x = x.reshape(b, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * columns, patch * patch * channels)


def unit_length(x: Float[Array, "... e"]) -> Float[Array, "... e"]:
    """Unit length along the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def layers(
    config: VisionConfig | TextConfig,
    dtype: jax.typing.DTypeLike,
    remat: bool,
    causal: bool = False,
) -> Iterator[nn.Module]:
    """The layers of a tower, called `layers_0`, `layers_1`, ... in the module that asks."""
    layer = nn.remat(PreNormLayer) if remat else PreNormLayer
    for i in range(config.num_hidden_layers):
        yield layer(
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_act,
            config.layer_norm_eps,
            dtype,
            causal,
            name=f"layers_{i}",
        )
