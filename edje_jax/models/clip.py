"""CLIP: the vision tower, the text tower, and the pair.

Source: CLIP (arXiv 2103.00020) and the layout of Hugging Face's `CLIPModel`, which OpenAI's models,
DFN (arXiv 2309.17425) and MetaCLIP (arXiv 2309.16671) share; they differ in activation, padding
and image recipe.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edje_jax.config.model import BackboneConfig, TextConfig
from edje_jax.models.towers import DualTower, Tower, VisionOutput, beside_earlier, patchify

_FIRST_END_TOKEN_ID = 2
"""Value of `eos_token_id` in OpenAI's configs. It is wrong: the end token is the highest id."""


class ClipVisionTower(Tower):
    """[class token, patches] -> tokens and the class token's projection.

    Vision tokens are those of one layer's output as it is, the class token only if asked for.
    """

    @nn.compact
    def __call__(self, pixel_values: Float[Array, "b s s 3"]) -> VisionOutput:
        config: BackboneConfig = self.config
        c = config.vision
        normal, width = nn.initializers.normal(0.02), c.hidden_size
        patches = patchify(pixel_values, c.patch_size)
        embed = nn.Dense(width, use_bias=False, dtype=self.dtype, name="patch_embedding")
        class_token = self.param("class_embedding", normal, (width,)).astype(self.dtype)
        first = jnp.broadcast_to(class_token[None, None], (len(patches), 1, width))
        x = jnp.concatenate([first, embed(patches)], axis=1)
        position = self.param("position_embedding", normal, (c.num_patches + 1, width))
        x = x + position.astype(self.dtype)[None]
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="pre_layernorm")(x)
        hidden = self.run_layers(c, x, wanted=config.token_layer)
        norm = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="post_layernorm")
        project = nn.Dense(
            config.text.projection_size, use_bias=False, dtype=self.dtype, name="projection"
        )
        tokens = beside_earlier(config, hidden[config.token_layer], hidden)
        if not config.class_token:
            tokens = tokens[:, 1:]
        return VisionOutput(tokens, project(norm(hidden[-1][:, 0])), hidden)


class ClipTextTower(Tower):
    """Token ids -> the projection of the end token's row.

    Attention is causal and the end token closes the caption, so no padding is ever seen.
    """

    @nn.compact
    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        c: TextConfig = self.config
        embed = nn.Embed(c.vocab_size, c.hidden_size, name="token_embedding")
        shape = (c.max_position_embeddings, c.hidden_size)
        position = self.param("position_embedding", nn.initializers.normal(0.02), shape)
        x = embed(ids).astype(self.dtype) + position.astype(self.dtype)[None, : ids.shape[1]]
        x = self.run_layers(c, x, causal=True)[-1]
        end = jnp.take_along_axis(x, _end_positions(ids, c.eos_token_id)[:, None, None], axis=1)
        x = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name="final_layer_norm")(end[:, 0])
        return nn.Dense(c.projection_size, use_bias=False, dtype=self.dtype, name="projection")(x)


class Clip(DualTower):
    """CLIP's dual encoder."""

    def setup(self):
        self.vision = ClipVisionTower(self.config, self.dtype, self.remat, self.scan)
        self.text = ClipTextTower(self.config.text, self.dtype, self.remat, self.scan)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())

    def __call__(
        self, pixel_values: Float[Array, "b s s 3"], ids: Int[Array, "t l"]
    ) -> Float[Array, "t b"]:
        """Softmax logits of every text against every image."""
        image = self.encode_image(pixel_values).embedding
        return self.encode_text(ids) @ image.T * jnp.exp(self.logit_scale)


def _end_positions(ids: Int[Array, "b t"], end: int) -> Int[Array, " b"]:
    """End position of each caption. Padding may repeat the end token, so the first one counts."""
    if end == _FIRST_END_TOKEN_ID:
        return jnp.argmax(ids, axis=1)
    return jnp.argmax(ids == end, axis=1)
