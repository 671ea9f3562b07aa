"""Layers that several towers share."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edje_jax.models.attention import attend
from edje_jax.models.int8 import Dense
from edje_jax.system.platform import platform


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x). In bfloat16 on a GPU its tanh approximation, which cuBLAS applies to a product
    before that is rounded: it is off by 5e-4 at most, and bfloat16 rounds 1 by 4e-3."""
    return jax.nn.gelu(x, approximate=x.dtype == jnp.bfloat16 and platform() == "gpu")


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


def split_heads(x: Float[Array, "b n d"], heads: int) -> Float[Array, "b n h e"]:
    """Split the last axis into `heads` of equal width."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def merge_heads(x: Float[Array, "b n h e"]) -> Float[Array, "b n d"]:
    """Undo `split_heads`."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


class Mlp(nn.Module):
    """fc2(activation(fc1(x))), per token."""

    intermediate_size: int
    hidden_act: str
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        h = Dense(self.intermediate_size, self.dtype, name="fc1")(x)
        return Dense(x.shape[-1], self.dtype, name="fc2")(ACTIVATIONS[self.hidden_act](h))


class MultiheadAttention(nn.Module):
    """Attention with the parameters of torch's `MultiheadAttention`.

    `in_proj` holds the three input projections side by side: kernel [d, 3d], bias [3d], in the
    order query, key, value.
    """

    num_heads: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "b q d"],
        key: Float[Array, "b k d"],
        value: Float[Array, "b k d"],
    ) -> Float[Array, "b q d"]:
        width = query.shape[-1]
        kernel = self.param("in_proj_kernel", nn.initializers.xavier_uniform(), (width, 3 * width))
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * width,))
        query, key, value = (
            split_heads(x.astype(self.dtype) @ w + b, self.num_heads)
            for x, w, b in zip(
                (query, key, value),
                jnp.split(kernel.astype(self.dtype), 3, axis=1),
                jnp.split(bias.astype(self.dtype)[None, None, :], 3, axis=2),
                strict=True,
            )
        )
        out = merge_heads(attend(query, key, value))
        return Dense(width, self.dtype, name="out_proj")(out)


class SelfAttention(nn.Module):
    """Self-attention with separate projections, as SigLIP's and CLIP's towers have it."""

    num_heads: int
    dtype: jax.typing.DTypeLike
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        query, key, value = (
            split_heads(Dense(x.shape[-1], self.dtype, name=name)(x), self.num_heads)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = merge_heads(attend(query, key, value, mask, causal=self.causal))
        return Dense(x.shape[-1], self.dtype, name="out_proj")(out)


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    num_heads: int
    intermediate_size: int
    hidden_act: str
    layer_norm_eps: float
    dtype: jax.typing.DTypeLike
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b n d"]:
        norm1 = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm1")
        norm2 = nn.LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="layer_norm2")
        attention = SelfAttention(self.num_heads, self.dtype, self.causal, name="self_attn")
        x = x + attention(norm1(x), mask)
        mlp = Mlp(self.intermediate_size, self.hidden_act, self.dtype, name="mlp")
        return x + mlp(norm2(x))
