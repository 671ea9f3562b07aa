"""EDJE (arXiv 2510.06820): picture -> compressed tokens -> match logit.

The published sequence is [CLS] caption [SEP] v_1..v_m [SEP] padding, and every position id
follows it, so that a vision token's position depends on the caption's length. In memory the
vision rows stand first,

    v_1..v_m [SEP] [CLS] caption [SEP] padding

because attention does not care about order: every offset is then static and padding is a tail.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config import EdjeConfig
from edje_jax.models.adapter import make_adapter
from edje_jax.models.bert import Embeddings, Layer, MaskedLmHead

EVERY_ROW: tuple[int, None] = (0, None)
"""Rows that a layer returns. Always stated, as remat wants its static arguments by position."""


class Sequence(NamedTuple):
    """An embedded input of the joint encoder in memory order."""

    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    """True for rows that are there."""


class Edje(nn.Module):
    """Adapter and joint encoder; the frozen backbone stands apart.

    Parameters are `adapter` and `joint_encoder`. Text ids are [CLS] caption [SEP] and padding,
    int32 [b, t]; `tokens` are compressed tokens [b, m, d]. Logits leave in float32.
    """

    config: EdjeConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    dropout: float = 0.0
    remat: bool = False

    def setup(self):
        c = self.config
        self.adapter = make_adapter(
            c.adapter,
            c.backbone.vision.num_attention_heads,
            c.joint_encoder.hidden_size,
            self.dtype,
            name="adapter",
        )
        self.joint_encoder = JointEncoder(c, self.dtype, self.dropout, self.remat)

    def compress(self, vision_tokens: Float[Array, "b n w"]) -> Float[Array, "b m d"]:
        """Vision tokens of the backbone -> what the store keeps."""
        return self.adapter(vision_tokens.astype(self.dtype))

    def match(
        self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"], train: bool = False
    ) -> Float[Array, " b"]:
        """Match logits, pair by pair."""
        return self.joint_encoder.match(ids, tokens, train)

    def masked_lm(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"],
        positions: Int[Array, "g p"],
        train: bool = False,
    ) -> Float[Array, "g p v"]:
        """Word logits at `positions`, which count through the flattened ids of each of g equal
        groups of rows."""
        return self.joint_encoder.masked_lm(ids, tokens, positions, train)

    def recover_text(self, ids: Int[Array, "b t"], train: bool = False) -> Float[Array, "b e"]:
        """The backbone's text embedding, guessed from a text-only pass; float32."""
        return self.joint_encoder.recover_text(ids, train)

    def hidden_states(
        self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]
    ) -> list[Float[Array, "b n d"]]:
        """The embedded input and every layer's output, in memory order."""
        return self.joint_encoder.hidden_states(ids, tokens)

    def __call__(self, vision_tokens: Float[Array, "b n w"], ids: Int[Array, "b t"]) -> Array:
        """Run every part once, which is what initialises every parameter."""
        tokens = self.compress(vision_tokens)
        outputs = (
            self.match(ids, tokens),
            self.masked_lm(ids, tokens, jnp.zeros((1, 1), jnp.int32)),
            self.recover_text(ids),
        )
        return jnp.stack([jnp.sum(out) for out in outputs])


class JointEncoder(nn.Module):
    """BERT over [vision tokens, text] with a match, a masked-LM and a text-recovery head."""

    config: EdjeConfig
    dtype: jax.typing.DTypeLike
    dropout: float
    remat: bool

    def setup(self):
        bert = self.config.joint_encoder
        # Which rows to keep and whether to drop are Python values: static for remat.
        layer = nn.remat(Layer, static_argnums=(3, 4)) if self.remat else Layer
        self.embeddings = Embeddings(bert, self.dtype, self.dropout)
        self.layers = [layer(bert, self.dtype, self.dropout) for _ in range(bert.num_hidden_layers)]
        init = nn.initializers.normal(bert.initializer_range)
        self.pooler = nn.Dense(bert.hidden_size, dtype=self.dtype, kernel_init=init)
        self.classifier = nn.Dense(1, dtype=self.dtype, kernel_init=init)
        self.masked_lm_head = MaskedLmHead(bert, self.dtype)
        self.text_recovery = nn.Dense(
            self.config.backbone.text.projection_size, dtype=self.dtype, kernel_init=init
        )

    def match(self, ids, tokens, train):
        sequence = self._embed(ids, tokens, train)
        first = tokens.shape[1] + 1
        cls = self._encode(sequence, train, (first, first + 1))[:, 0]
        pooled = jnp.tanh(self.pooler(cls))
        return self.classifier(pooled)[:, 0].astype(jnp.float32)

    def masked_lm(self, ids, tokens, positions, train):
        sequence = self._embed(ids, tokens, train)
        text = self._encode(sequence, train, (tokens.shape[1] + 1, None))
        grouped = text.reshape(len(positions), -1, text.shape[-1])
        picked = jnp.take_along_axis(grouped, positions[..., None], axis=1)
        hidden = self.masked_lm_head(picked)
        return self.embeddings.decode(hidden) + self.masked_lm_head.bias[None, None, :]

    def recover_text(self, ids, train):
        mask = ids != self.config.joint_encoder.pad_token_id
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        rows = self.embeddings(self.embeddings.words(ids), positions, jnp.zeros_like(ids), train)
        cls = self._encode(Sequence(rows, mask), train, (0, 1))[:, 0]
        return self.text_recovery(cls).astype(jnp.float32)

    def hidden_states(self, ids, tokens):
        rows, mask = self._embed(ids, tokens, False)
        states = [rows]
        for layer in self.layers:
            states.append(layer(states[-1], mask, False, EVERY_ROW))
        return states

    def _embed(
        self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"], train: bool
    ) -> Sequence:
        """Vision rows, the [SEP] that closes them, then the text."""
        batch, length = ids.shape
        m = tokens.shape[1]
        present = ids != self.config.joint_encoder.pad_token_id
        # [CLS] caption [SEP] takes positions 0..t-1, vision t..t+m-1, the closing [SEP] t+m.
        lengths = jnp.sum(present.astype(jnp.int32), axis=1, keepdims=True)
        vision_positions = lengths + jnp.arange(m + 1)[None]
        text_positions = jnp.broadcast_to(jnp.arange(length)[None], ids.shape)
        # The caption's own [SEP] is its last id, whatever number the tokenizer gave it.
        closing = jnp.take_along_axis(ids, lengths - 1, axis=1)
        content = jnp.concatenate(
            [
                tokens.astype(self.dtype),
                self.embeddings.words(jnp.concatenate([closing, ids], axis=1)),
            ],
            axis=1,
        )
        segments = jnp.concatenate(
            [jnp.ones((batch, m + 1), ids.dtype), jnp.zeros_like(ids)], axis=1
        )
        rows = self.embeddings(
            content, jnp.concatenate([vision_positions, text_positions], axis=1), segments, train
        )
        mask = jnp.concatenate([jnp.ones((batch, m + 1), bool), present], axis=1)
        return Sequence(rows, mask)

    def _encode(
        self, sequence: Sequence, train: bool, kept: tuple[int, int | None]
    ) -> Float[Array, "b r d"]:
        """All layers; the last one computes only the rows that are asked for."""
        x, mask = sequence
        for layer in self.layers[:-1]:
            x = layer(x, mask, train, EVERY_ROW)
        return self.layers[-1](x, mask, train, kept)
