"""Layers of a text decoder that attends to an image: BERT's, causal, with cross-attention.

The image's tokens do not attend to each other, so that a layer's cost is linear in their number.
"""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from edje_jax.config.captioner import CrossAttention
from edje_jax.config.model import BertConfig
from edje_jax.models.attention import Padding, attend
from edje_jax.models.bert import DTypeLike
from edje_jax.models.int8 import Dense
from edje_jax.models.layers import ACTIVATIONS, merge_heads, split_heads


class DecoderLayer(nn.Module):
    """norm(x + causal attention(x)), norm(x + attention(x, image)), then norm(x + mlp(x)).

    Parameters other than the cross-attention's are called as those of `models.bert.Layer`, which a
    decoder may start from. With projected keys and values, transformers' `BertLayer` with
    `add_cross_attention` is the same.
    """

    config: BertConfig
    cross_attention: CrossAttention
    dtype: DTypeLike
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        present: Bool[Array, "b t"],
        tokens: Float[Array, "b m d"],
        seen: Padding | None = None,
        train: bool = False,
    ) -> Float[Array, "b t d"]:
        """`present` is False for padding, which stands behind the tokens of a row; `seen` hides
        rows of `tokens`."""
        c = self.config
        drop = nn.Dropout(self.dropout, deterministic=not train)

        def dense(size: int, name: str) -> Dense:
            init = nn.initializers.normal(c.initializer_range)
            return Dense(size, self.dtype, init, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name=name)

        def heads(name: str, rows: Array) -> Array:
            return split_heads(dense(c.hidden_size, name)(rows), c.num_attention_heads)

        def attended(
            heads: tuple[Array, Array, Array], mask: Padding | None, causal: bool, name: str
        ):
            dropping = train and self.dropout > 0.0
            rng = self.make_rng("dropout") if dropping else None
            context = attend(*heads, mask, self.dropout, rng, causal=causal)
            return drop(dense(c.hidden_size, name)(merge_heads(context)))

        own = heads("query", x), heads("key", x), heads("value", x)
        x = norm("attention_norm")(x + attended(own, Padding(present), True, "attention_output"))
        if self.cross_attention == "stored":
            key = value = split_heads(tokens, c.num_attention_heads)
        else:
            key, value = heads("cross_key", tokens), heads("cross_value", tokens)
        across = heads("cross_query", x), key, value
        x = norm("cross_norm")(x + attended(across, seen, False, "cross_output"))
        inner = ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, "intermediate")(x))
        return norm("output_norm")(x + drop(dense(c.hidden_size, "output")(inner)))
