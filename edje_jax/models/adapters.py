"""Adapters: vision tokens of the backbone -> what the joint encoder reads and the store keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.config.model import AdapterConfig
from edje_jax.models.layers import ACTIVATIONS, Mlp, MultiheadAttention


class TokenProjector(nn.Module):
    """The "local" adapter: Linear, GELU, Linear, token by token; n tokens in, n out.

    y = W2 gelu(W1 x + b1) + b2 (EDJE, section 3; exact GELU).
    """

    intermediate_size: int
    output_size: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        hidden = nn.Dense(self.intermediate_size, dtype=self.dtype, name="fc1")(tokens)
        return nn.Dense(self.output_size, dtype=self.dtype, name="fc2")(ACTIVATIONS["gelu"](hidden))


class TokenCompressor(nn.Module):
    """The "compress" adapter: m learned queries attend to the n vision tokens.

    K = X Wk + bk, V = X Wv + bv, H = MultiHeadAttention(Q, K, V), O = H + MLP(norm(H)),
    Y = O Wp + bp (EDJE, section 3). As in the published code, the attention projects queries,
    keys and values once more, the queries start from N(0, 1) and are not added back to H.
    """

    num_tokens: int
    num_heads: int
    intermediate_size: int
    output_size: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        batch, _, width = tokens.shape
        query = self.param("query", nn.initializers.normal(1.0), (1, self.num_tokens, width))
        query = jnp.broadcast_to(query.astype(self.dtype), (batch, self.num_tokens, width))
        key = nn.Dense(width, dtype=self.dtype, name="key")(tokens)
        value = nn.Dense(width, dtype=self.dtype, name="value")(tokens)
        attended = MultiheadAttention(self.num_heads, self.dtype, name="attention")(
            query, key, value
        )
        normed = nn.LayerNorm(1e-6, dtype=self.dtype, name="layernorm")(attended)
        out = attended + Mlp(self.intermediate_size, "gelu", self.dtype, name="mlp")(normed)
        return nn.Dense(self.output_size, dtype=self.dtype, name="projection")(out)


def make_adapter(
    config: AdapterConfig, num_heads: int, output_size: int, dtype: jax.typing.DTypeLike, name: str
) -> nn.Module:
    """The adapter a config names; `num_heads` are the vision tower's."""
    if config.kind == "local":
        return TokenProjector(config.intermediate_size, output_size, dtype, name=name)
    return TokenCompressor(
        config.num_tokens, num_heads, config.intermediate_size, output_size, dtype, name=name
    )
