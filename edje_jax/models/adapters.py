"""Adapters: vision tokens of the backbone -> what the joint encoder reads and the store keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.config.model import EdjeConfig
from edje_jax.models.layers import ACTIVATIONS, Mlp, MultiheadAttention
from edje_jax.models.upsampling import STEPS, GridUpsampler


class Adapter(nn.Module):
    """An adapter of a config, whose vision tokens may first be brought to a finer grid."""

    config: EdjeConfig
    dtype: jax.typing.DTypeLike

    def upsample(self, tokens: Float[Array, "b n w"]) -> Float[Array, "b f v"]:
        """Vision tokens of the grid that the adapter reads."""
        steps = STEPS[self.config.adapter.upsampling]
        if not steps:
            return tokens
        vision = self.config.backbone.vision
        side = vision.image_size // vision.patch_size
        return GridUpsampler(side, steps, self.dtype, name="upsampling")(tokens)


class TokenProjector(Adapter):
    """The "local" adapter: Linear, GELU, Linear, token by token; n tokens in, n out.

    y = W2 gelu(W1 x + b1) + b2 (EDJE, section 3; exact GELU).
    """

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n w"]) -> Float[Array, "b m d"]:
        c = self.config
        tokens = self.upsample(tokens)
        hidden = nn.Dense(c.adapter.intermediate_size, dtype=self.dtype, name="fc1")(tokens)
        out = nn.Dense(c.joint_encoder.hidden_size, dtype=self.dtype, name="fc2")
        return out(ACTIVATIONS["gelu"](hidden))


class TokenCompressor(Adapter):
    """The "compress" adapter: m learned queries attend to the n vision tokens.

    K = X Wk + bk, V = X Wv + bv, H = MultiHeadAttention(Q, K, V), O = H + MLP(norm(H)),
    Y = O Wp + bp (EDJE, section 3). As in the published code, the attention projects queries,
    keys and values once more, the queries start from N(0, 1) and are not added back to H.
    """

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n w"]) -> Float[Array, "b m d"]:
        c, heads = self.config, self.config.backbone.vision.num_attention_heads
        tokens = self.upsample(tokens)
        batch, _, width = tokens.shape
        query = self.param("query", nn.initializers.normal(1.0), (1, c.adapter.num_tokens, width))
        query = jnp.broadcast_to(query.astype(self.dtype), (batch, c.adapter.num_tokens, width))
        key = nn.Dense(width, dtype=self.dtype, name="key")(tokens)
        value = nn.Dense(width, dtype=self.dtype, name="value")(tokens)
        attended = MultiheadAttention(heads, self.dtype, name="attention")(query, key, value)
        normed = nn.LayerNorm(1e-6, dtype=self.dtype, name="layernorm")(attended)
        out = attended + Mlp(c.adapter.intermediate_size, "gelu", self.dtype, name="mlp")(normed)
        return nn.Dense(c.joint_encoder.hidden_size, dtype=self.dtype, name="projection")(out)


def make_adapter(config: EdjeConfig, dtype: jax.typing.DTypeLike, name: str) -> Adapter:
    """The adapter that a config names."""
    kinds = {"local": TokenProjector, "compress": TokenCompressor}
    return kinds[config.adapter.kind](config, dtype, name=name)
