"""BERT (arXiv 1810.04805) as the joint encoder needs it: embeddings apart from the layers.

MiniLM is this architecture at width 384. Departure from a plain BERT: a row of the input may be
a given vector instead of a word, and the last layer can be asked for some rows only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import BertConfig
from edje_jax.models.attention import Padding, attend
from edje_jax.models.int8 import Dense
from edje_jax.models.layers import ACTIVATIONS, merge_heads, split_heads

DTypeLike = jax.typing.DTypeLike


class Embeddings(nn.Module):
    """norm(content + position + segment), where the content is a word or a given vector.

    Rows of the tables are gathered before they are cast: a whole table is a hundred times as large.
    """

    config: BertConfig
    dtype: DTypeLike
    dropout: float = 0.0

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_range)

        def table(rows: int) -> nn.Embed:
            return nn.Embed(rows, c.hidden_size, embedding_init=init)

        self.word = table(c.vocab_size)
        self.position = table(c.max_position_embeddings)
        self.segment = table(c.type_vocab_size)
        self.norm = nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        content: Float[Array, "b n d"],
        positions: Int[Array, "b n"],
        segments: Int[Array, "b n"],
        train: bool,
    ) -> Float[Array, "b n d"]:
        """Positions past the last row of the table repeat that row."""
        rows = jnp.minimum(positions, self.config.max_position_embeddings - 1)
        parts = content, self.position(rows), self.segment(segments)
        content, position, segment = (part.astype(self.dtype) for part in parts)
        x = content + position + segment
        return self.drop(self.norm(x), deterministic=not train)

    def words(self, ids: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Rows of the word table."""
        return self.word(ids).astype(self.dtype)

    def decode(self, x: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Products with every word's row, float32: the tied masked-LM decoder."""
        table = self.word.embedding.astype(self.dtype)
        return jnp.matmul(x, table.T, preferred_element_type=jnp.float32)


class Layer(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    config: BertConfig
    dtype: DTypeLike
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        mask: Bool[Array, "b n"] | Padding,
        train: bool = False,
        rows: tuple[int, int | None] = (0, None),
    ) -> Float[Array, "b r d"]:
        """`rows` (start, stop) are the rows that leave; every row of the mask is attended to."""
        c = self.config

        def dense(size: int, name: str) -> Dense:
            init = nn.initializers.normal(c.initializer_range)
            return Dense(size, self.dtype, init, name=name)

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(c.layer_norm_eps, dtype=self.dtype, name=name)

        drop = nn.Dropout(self.dropout, deterministic=not train)
        kept = x[:, slice(*rows)]
        query, key, value = (
            split_heads(dense(c.hidden_size, name)(source), c.num_attention_heads)
            for name, source in (("query", kept), ("key", x), ("value", x))
        )
        dropping = train and self.dropout > 0.0
        rng = self.make_rng("dropout") if dropping else None
        context = merge_heads(attend(query, key, value, mask, self.dropout, rng))
        kept = norm("attention_norm")(
            kept + drop(dense(c.hidden_size, "attention_output")(context))
        )
        inner = ACTIVATIONS[c.hidden_act](dense(c.intermediate_size, "intermediate")(kept))
        return norm("output_norm")(kept + drop(dense(c.hidden_size, "output")(inner)))
