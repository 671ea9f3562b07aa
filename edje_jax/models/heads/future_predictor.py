"""Predictor of how a video's vision tokens change, which training alone has (VEDJE)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.config.model import EdjeConfig
from edje_jax.models.layers import Mlp, MultiheadAttention

LAYERS = 2


class FuturePredictor(nn.Module):
    """Compressed tokens of a frame -> difference of each vision token to that of a later frame.

    Queries of fixed sines and cosines, of (horizon, patch), attend to the tokens of the frame in
    two layers, and a last projection leads to the width of the vision tokens (VEDJE, which says no
    more). Layers as those of a transformer's decoder, normalised at their inputs and without
    attention among the queries, which keeps each patch's prediction apart, are ours.
    """

    config: EdjeConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b m d"], horizon: int) -> Float[Array, "b n w"]:
        """Predict how the vision tokens change within `horizon` frames; float32."""
        joint, backbone = self.config.joint_encoder, self.config.backbone
        patches, width = backbone.num_vision_tokens, joint.hidden_size
        tokens = nn.LayerNorm(dtype=self.dtype, name="norm_tokens")(tokens.astype(self.dtype))
        queries = sinusoids(np.full(patches, horizon), np.arange(patches), width)
        x = jnp.broadcast_to(queries.astype(self.dtype)[None], (len(tokens), patches, width))
        for i in range(LAYERS):
            attention = MultiheadAttention(
                joint.num_attention_heads, self.dtype, name=f"attention_{i}"
            )
            x = x + attention(self._norm(f"norm_attention_{i}")(x), tokens, tokens)
            inner = Mlp(4 * width, "gelu", self.dtype, name=f"mlp_{i}")
            x = x + inner(self._norm(f"norm_mlp_{i}")(x))
        out = nn.Dense(backbone.token_width, dtype=self.dtype, name="projection")
        return out(self._norm("norm")(x)).astype(jnp.float32)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(dtype=self.dtype, name=name)


def sinusoids(
    horizon: np.ndarray, patch: np.ndarray, width: int
) -> Float32[np.ndarray, "n {width}"]:
    """Sines and cosines of both numbers, as the positions of arXiv 1706.03762 have them: the first
    half of the columns tells the horizon, the second the patch."""
    columns = []
    for number, size in ((horizon, width // 2), (patch, width - width // 2)):
        column = np.arange(size)
        angle = number[:, None] / 10_000.0 ** (2 * (column // 2) / size)[None]
        columns.append(np.where(column % 2, np.cos(angle), np.sin(angle)))
    return np.concatenate(columns, axis=1).astype(np.float32)
