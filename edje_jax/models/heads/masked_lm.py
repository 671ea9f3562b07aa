"""The masked-language-model head of BERT (arXiv 1810.04805)."""

import flax.linen as nn
from jaxtyping import Array, Float

from edje_jax.config.model import BertConfig
from edje_jax.models.bert import DTypeLike
from edje_jax.models.layers import ACTIVATIONS


class MaskedLmHead(nn.Module):
    """BERT's transform before the tied decoder, and the decoder's bias."""

    config: BertConfig
    dtype: DTypeLike

    def setup(self):
        c = self.config
        self.dense = nn.Dense(c.hidden_size, dtype=self.dtype)
        self.norm = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return self.norm(ACTIVATIONS[self.config.hidden_act](self.dense(x)))
