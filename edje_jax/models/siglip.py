"""SigLIP and SigLIP2 (fixed resolution): the vision tower, the text tower, and the pair.

Sources: SigLIP (arXiv 2303.15343), SigLIP2 (arXiv 2502.14786), and the layout of Hugging Face's
`SiglipModel`, which both share at fixed resolution.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edje_jax.config.model import BackboneConfig, TextConfig, VisionConfig
from edje_jax.models.layers import Mlp, MultiheadAttention
from edje_jax.models.towers import DualTower, Tower, VisionOutput, beside_earlier, patchify


class AttentionPool(nn.Module):
    """SigLIP's MAP head: a learned probe attends to the tokens, then a residual MLP."""

    config: VisionConfig
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        c = self.config
        shape = (1, 1, c.hidden_size)
        probe = self.param("probe", nn.initializers.xavier_uniform(), shape)
        probe = jnp.broadcast_to(probe.astype(self.dtype), (tokens.shape[0], 1, c.hidden_size))
        attention = MultiheadAttention(c.num_attention_heads, self.dtype, name="attention")
        x = attention(probe, tokens, tokens)
        norm = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="layernorm")
        mlp = Mlp(c.intermediate_size, c.hidden_act, self.dtype, name="mlp")
        return (x + mlp(norm(x)))[:, 0]


class SiglipVisionTower(Tower):
    """Patches -> tokens and a pooled embedding. No class token.

    The last layer's tokens go through the post layer norm, an earlier layer's do not.
    """

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "b s s 3"]) -> VisionOutput:
        config: BackboneConfig = self.config
        c = config.vision
        patches = patchify(pixel_values, c.patch_size)
        x = nn.Dense(c.hidden_size, dtype=self.dtype, name="patch_embedding")(patches)
        shape = (c.num_patches, c.hidden_size)
        position = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        x = x + position.astype(self.dtype)[None]
        hidden = self.run_layers(c, x, wanted=config.token_layer)
        norm = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="post_layernorm")
        last = norm(hidden[-1])
        embedding = AttentionPool(c, self.dtype, name="head")(last)
        tokens = last if config.token_layer == -1 else hidden[config.token_layer]
        return VisionOutput(beside_earlier(config, tokens, hidden), embedding, hidden)


class SiglipTextTower(Tower):
    """Token ids -> embedding: the **last position** through a linear head, padding included.

    SigLIP pads every text to its full length with the pad id and uses no attention mask, unless
    the config says otherwise.
    """

    @nn.compact
    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        c: TextConfig = self.config
        embed = nn.Embed(c.vocab_size, c.hidden_size, name="token_embedding")
        shape = (c.max_position_embeddings, c.hidden_size)
        position = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        x = embed(ids).astype(self.dtype) + position.astype(self.dtype)[None, : ids.shape[1]]
        mask = ids != c.pad_token_id if c.mask_padding else None
        x = self.run_layers(c, x, mask)[-1]
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="final_layer_norm")(x[:, -1])
        return nn.Dense(c.projection_size, dtype=self.dtype, name="head")(x)


class Siglip(DualTower):
    """SigLIP's dual encoder."""

    def setup(self):
        how = self.dtype, self.remat, self.scan
        self.vision = SiglipVisionTower(self.config, *how)
        self.text = SiglipTextTower(self.config.text, *how)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(jnp.log(10.0)), (1,))
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), (1,))

    def __call__(
        self, pixel_values: Float[Array, "b s s 3"], ids: Int[Array, "t l"]
    ) -> Float[Array, "t b"]:
        """Sigmoid logits of every text against every image (SigLIP, eq. 1)."""
        image = self.encode_image(pixel_values).embedding
        cosine = self.encode_text(ids) @ image.T
        return cosine * jnp.exp(self.logit_scale)[None] + self.logit_bias[None]
