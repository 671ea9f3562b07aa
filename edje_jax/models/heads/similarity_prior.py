"""Learned prior: the first stage's cosine as an input of the match head (VEDJE)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.config.model import SimilarityPrior
from edje_jax.models.bert import DTypeLike

HIDDEN = 64
"""Width of the hidden layer, as VEDJE has it."""


class SimilarityPriorHead(nn.Module):
    """Vector that is added to [CLS] before the match head, from a pair's cosine.

        e = W2 gelu(W1 (cosine - mean) / deviation)

    VEDJE z-normalises the first stage's score over a query's candidates. Here mean and deviation
    are constants of the model, so that a pair's logit depends on the pair alone. W2 starts at zero:
    a fresh head changes nothing.
    """

    config: SimilarityPrior
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, similarity: Float[Array, " b"]) -> Float[Array, "b d"]:
        z = (similarity.astype(jnp.float32) - self.config.mean) / self.config.deviation
        hidden = nn.gelu(nn.Dense(HIDDEN, dtype=self.dtype, name="hidden")(z[:, None]))
        zeros = nn.initializers.zeros
        return nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros, name="out")(hidden)
