"""Parts that all dual encoders share: their base class, and parts of towers."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import BackboneConfig, TextConfig, VisionConfig
from edje_jax.models.layer_stack import run_layers
from edje_jax.models.layers import PreNormLayer


class VisionOutput(NamedTuple):
    """Outputs of one pass of a vision tower. Under jit, what is not used is not computed."""

    tokens: Float[Array, "b n w"]
    """Vision tokens: what the adapter reads, from the layers that the config names."""
    embedding: Float[Array, "b e"]
    """Pooled embedding."""
    hidden_states: tuple[Float[Array, "b n d"], ...]
    """Input of the first layer, then the output of each layer."""


class Tower(nn.Module):
    """Tower of pre-norm layers; their parameters are `layers_0`, `layers_1`, ..."""

    config: Any
    dtype: jax.typing.DTypeLike
    remat: bool = False
    scan: bool = False

    def run_layers(
        self,
        config: VisionConfig | TextConfig,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | None = None,
        *,
        causal: bool = False,
        wanted: int = -1,
    ) -> tuple[Float[Array, "b n d"], ...]:
        """Input of the first layer, then the output of each layer.

        The states under a scan are kept all or none, but for the last one and `wanted`.
        """
        layer = nn.remat(PreNormLayer) if self.remat else PreNormLayer
        layers = [
            layer(
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_act,
                config.layer_norm_eps,
                self.dtype,
                causal,
                name=f"layers_{i}",
            )
            for i in range(config.num_hidden_layers)
        ]
        cut = range(len(layers) + 1)[wanted]
        run = partial(run_layers, self, step=lambda layer, x: layer(x, mask), scan=self.scan)
        before = run(layers[:cut], x)
        return (*before, *run(layers[cut:], before[-1])[1:])


class DualTower(nn.Module):
    """A dual encoder. Embeddings leave in float32 and unit length.

    A family's `setup` makes `vision` and `text`, and its `__call__` logits of all pairs.
    """

    config: BackboneConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool = False
    scan: bool = False
    """Whether the layers of a tower are one loop (`layer_stack`)."""

    def encode_image(self, pixel_values: Float[Array, "b s s 3"]) -> VisionOutput:
        """Normalised pixels -> vision tokens and unit-length float32 embeddings."""
        out = self.vision(pixel_values.astype(self.dtype))
        return out._replace(embedding=unit_length(out.embedding))

    def encode_text(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Padded token ids -> unit-length float32 embeddings."""
        return unit_length(self.text(ids))

    def __call__(
        self, pixel_values: Float[Array, "b s s 3"], ids: Int[Array, "t l"]
    ) -> Float[Array, "t b"]:
        """Logits of every text against every image, as the family was trained."""
        raise NotImplementedError


def beside_earlier(
    config: BackboneConfig, tokens: Float[Array, "b n d"], hidden: Sequence[Float[Array, "b n d"]]
) -> Float[Array, "b n w"]:
    """Vision tokens with the same places of the earlier layers that the config names."""
    if not config.earlier_layers:
        return tokens
    return jnp.concatenate([tokens, *(hidden[layer] for layer in config.earlier_layers)], axis=-1)


def patchify(pixels: Float[Array, "b s s c"], patch: int) -> Float[Array, "b n k"]:
    """Cut images into flattened patches, row by row; k runs over (row, column, channel).

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
