"""The joint encoder: BERT over the tokens of an image and a caption.

The published sequence is [CLS] caption [SEP] v_1..v_m [SEP] padding, and every position id
follows it, so that a vision token's position depends on the caption's length. In memory the
vision rows stand first,

    v_1..v_m [SEP] [CLS] caption [SEP] padding

because attention does not care about order: every offset is then static and padding is a tail.

**Deferred fusion** (`joint_encoder.deferred_layers` = s > 0) departs from the paper: in the first
s layers the m vision rows and the rest attend within their own side, as DeFormer (arXiv 2005.00697)
and PreTTR (arXiv 2004.14255) split text from text. Vision rows then stand at fixed positions, after
the longest caption; `run_deferred_layers` takes them through their first s layers, and a store
keeps the result, m rows as before. The [SEP] that closes the vision segment belongs to the text
side, which `encode_text` takes through its first s layers, once for all images that a caption
meets. With `online_vision` "attended"
the other layers leave the vision rows as they are (MICE, MORES).
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.models.attention import Padding
from edje_jax.models.bert import Embeddings, Layer
from edje_jax.models.frames import present_rows
from edje_jax.models.heads.masked_lm import MaskedLmHead
from edje_jax.models.heads.similarity_prior import SimilarityPriorHead
from edje_jax.models.layer_stack import Step, run_layers

EVERY_ROW: tuple[int, None] = (0, None)
"""Rows that a layer returns. Always stated, as remat wants its static arguments by position."""


class TextSide(NamedTuple):
    """Captions, ready to meet images: `[SEP] [CLS] caption [SEP] padding`, embedded and
    through the deferred layers."""

    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    """True for rows that are there."""


class RowInputs(NamedTuple):
    """Inputs of the embedding of rows."""

    content: Float[Array, "b n d"]
    positions: Int[Array, "b n"]
    segments: Int[Array, "b n"]


class PairRows(NamedTuple):
    """Pairs in memory order, embedded and through the deferred layers."""

    rows: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    vision: int
    """How many of the rows, from the first, are the image's."""


class JointEncoder(nn.Module):
    """BERT over [vision tokens, text] with a match, a masked-LM and a text-recovery head."""

    config: EdjeConfig
    dtype: jax.typing.DTypeLike
    dropout: float
    remat: bool
    scan: bool

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
        if prior := self.config.similarity_prior:
            self.similarity_prior = SimilarityPriorHead(prior, bert.hidden_size, self.dtype)

    def __call__(self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]) -> Array:
        """Run every head once, which is what initialises every parameter."""
        outputs = (
            self.match(self.join(ids, tokens, False), False, jnp.zeros(len(ids))),
            self.masked_lm(ids, tokens, jnp.zeros((1, 1), jnp.int32), False),
            self.recover_text(ids, False),
        )
        return jnp.stack([jnp.sum(out) for out in outputs])

    def run_deferred_layers(self, tokens: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        """The vision side of the deferred layers, if there are any."""
        if not self._deferred:
            return tokens
        start = jnp.full((len(tokens), 1), self.config.max_text_length)
        x = self.embeddings(*self._vision(tokens, start), False)
        present = present_rows(self.config, tokens)
        padding = Padding(present)
        x = self._run(
            slice(self._deferred), x, lambda layer, x: layer(x, padding, False, EVERY_ROW)
        )[-1]
        return jnp.where(present[..., None], x, 0) if self.config.may_miss_frames else x

    def encode_text(self, ids: Int[Array, "b t"], train: bool) -> TextSide:
        """The text side of the deferred layers."""
        text, present = self._text(ids, self.config.num_tokens)
        padding = Padding(present)
        x = self.embeddings(*text, train)
        rows = self._run(
            slice(self._deferred), x, lambda layer, x: layer(x, padding, train, EVERY_ROW)
        )[-1]
        return TextSide(rows, present)

    def join(self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"], train: bool) -> PairRows:
        """Pairs as the first layer that sees both sides takes them."""
        if self._deferred:
            return self.join_encoded(self.encode_text(ids, train), tokens)
        seen = present_rows(self.config, tokens)
        text, present = self._text(ids, jnp.sum(seen.astype(ids.dtype), axis=1, keepdims=True))
        start = jnp.sum(present[:, 1:].astype(jnp.int32), axis=1, keepdims=True)
        parts = zip(self._vision(tokens, start), text, strict=True)
        both = RowInputs(*(jnp.concatenate(part, axis=1) for part in parts))
        rows = self.embeddings(*both, train)
        return PairRows(rows, jnp.concatenate([seen, present], axis=1), tokens.shape[1])

    def join_encoded(self, text: TextSide, tokens: Float[Array, "b m d"]) -> PairRows:
        """Join tokens with captions that passed the deferred layers before.

        Raises:
            ValueError: no layers are deferred.
        """
        if not self._deferred:
            raise ValueError("captions are read before they meet an image by deferred layers alone")
        rows = jnp.concatenate([tokens.astype(self.dtype), text.rows], axis=1)
        mask = jnp.concatenate([present_rows(self.config, tokens), text.mask], axis=1)
        return PairRows(rows, mask, tokens.shape[1])

    def match(
        self, pairs: PairRows, train: bool, similarity: Float[Array, " b"] | None = None
    ) -> Float[Array, " b"]:
        """Match logits, float32, from the rows of [CLS].

        Raises:
            ValueError: the model has a similarity prior, and there are no cosines.
        """
        first = pairs.vision + 1
        cls = self._encode(pairs, train, (first, first + 1))[:, 0]
        if self.config.similarity_prior:
            if similarity is None:
                raise ValueError(
                    "a similarity prior needs the cosine of every pair; give similarity"
                )
            cls = cls + self.similarity_prior(similarity)
        pooled = jnp.tanh(self.pooler(cls))
        return self.classifier(pooled)[:, 0].astype(jnp.float32)

    def masked_lm(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"],
        positions: Int[Array, "g p"],
        train: bool,
    ) -> Float[Array, "g p v"]:
        """Word logits at `positions`, which count through the ids of each of g equal groups of
        rows."""
        pairs = self.join(ids, tokens, train)
        text = self._encode(pairs, train, (pairs.vision + 1, None))
        grouped = text.reshape(len(positions), -1, text.shape[-1])
        picked = jnp.take_along_axis(grouped, positions[..., None], axis=1)
        hidden = self.masked_lm_head(picked)
        return self.embeddings.decode(hidden) + self.masked_lm_head.bias[None, None, :]

    def recover_text(self, ids: Int[Array, "b t"], train: bool) -> Float[Array, "b e"]:
        """The backbone's text embedding, guessed from a text-only pass; float32."""
        mask = Padding(ids != self.config.joint_encoder.pad_token_id)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
        x = self.embeddings(self.embeddings.words(ids), positions, jnp.zeros_like(ids), train)
        x = self._run(slice(-1), x, lambda layer, x: layer(x, mask, train, EVERY_ROW))[-1]
        cls = self.layers[-1](x, mask, train, (0, 1))[:, 0]
        return self.text_recovery(cls).astype(jnp.float32)

    def hidden_states(
        self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"]
    ) -> list[Float[Array, "b n d"]]:
        """Input and output of every layer that is not deferred."""
        pairs = self.join(ids, tokens, False)
        return self._run_both(slice(self._deferred, None), pairs, False)

    @property
    def _deferred(self) -> int:
        return self.config.joint_encoder.deferred_layers

    def _vision(self, tokens: Float[Array, "b m d"], start: Int[Array, "b 1"]) -> RowInputs:
        """Vision rows, of which the first stands at a given position."""
        positions = start + jnp.arange(tokens.shape[1], dtype=start.dtype)[None]
        return RowInputs(tokens.astype(self.dtype), positions, jnp.ones_like(positions))

    def _text(
        self, ids: Int[Array, "b t"], vision: int | Int[Array, "b 1"]
    ) -> tuple[RowInputs, Bool[Array, "b n"]]:
        """The [SEP] that closes the vision segment, behind so many rows, and the caption; which of
        them are there."""
        batch, length = ids.shape
        present = ids != self.config.joint_encoder.pad_token_id
        lengths = jnp.sum(present.astype(jnp.int32), axis=1, keepdims=True)
        # The caption's own [SEP] is its last id, whatever number the tokenizer gave it.
        closing = jnp.take_along_axis(ids, lengths - 1, axis=1)
        # [CLS] caption [SEP] takes positions 0..t-1, vision t..t+m-1, the closing [SEP] t+m; t is
        # the longest caption's where what is stored cannot know which one it will meet.
        start = jnp.full_like(lengths, self.config.max_text_length) if self._deferred else lengths
        positions = jnp.broadcast_to(jnp.arange(length)[None], ids.shape)
        content = RowInputs(
            self.embeddings.words(jnp.concatenate([closing, ids], axis=1)),
            jnp.concatenate([start + vision, positions], axis=1),
            jnp.concatenate([jnp.ones((batch, 1), ids.dtype), jnp.zeros_like(ids)], axis=1),
        )
        return content, jnp.concatenate([jnp.ones((batch, 1), bool), present], axis=1)

    def _encode(
        self, pairs: PairRows, train: bool, kept: tuple[int, int | None]
    ) -> Float[Array, "b r d"]:
        """The layers that see both sides; the last one computes only the rows asked for."""
        x = self._run_both(slice(self._deferred, -1), pairs, train)[-1]
        return self.layers[-1](x, self._mask(pairs), train, kept)

    def _mask(self, pairs: PairRows) -> Bool[Array, "b n"] | Padding:
        """Mask of a pair's rows: rows of frames that are missing lie before the caption."""
        return pairs.mask if self.config.may_miss_frames else Padding(pairs.mask)

    def _run_both(self, which: slice, pairs: PairRows, train: bool) -> list[Float[Array, "b n d"]]:
        """Layers over both sides, whose vision rows may stay what they are."""
        updated = self.config.joint_encoder.online_vision == "updated"
        mask = self._mask(pairs)

        def step(layer: Callable[..., Array], x: Array) -> Array:
            if updated:
                return layer(x, mask, train, EVERY_ROW)
            text = layer(x, mask, train, (pairs.vision, None))
            return jnp.concatenate([x[:, : pairs.vision], text], axis=1)

        return self._run(which, pairs.rows, step)

    def _run(self, which: slice, x: Float[Array, "b n d"], step: Step) -> list[Array]:
        """Rows before the layers of a slice, and after each of them."""
        return run_layers(self, self.layers[which], x, step, self.scan)
