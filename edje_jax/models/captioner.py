"""A captioner that ranks: the slow model of Fast & Slow (arXiv 2103.16553), reconstructed.

A pair is scored by how well the image explains the caption, whose tokens y_1..y_n are predicted
from its beginning and, by other layers, from its end:

    h(x, y) = sum_i log p(y_i | y_1..y_i-1, x) + sum_i log p(y_i | y_n..y_i+1, x)

Both decoders share word embeddings, output layer and visual projection, as in VirTex (arXiv
2006.06666). All tokens of a caption are scored in one pass (teacher forcing). The paper says that
the text attends to all places of an image, that training is captioning in both directions, and that
the same score ranks; layers, widths and all that follows are ours.

    sum    h
    mean   h / n, per token
    pmi    h(x, y) - h(y), where h(y) is what the same decoders give the caption when they see a
           learned vector in place of the image: the pointwise mutual information of the two, if
           both were exact

[CLS] begins a caption and [SEP] ends it, or the other way round when it is read backwards; what
ends it is predicted too, so that n counts one more than the caption's pieces.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.models.attention import Padding
from edje_jax.models.bert import Embeddings
from edje_jax.models.decoder import DecoderLayer
from edje_jax.models.frames import present_rows
from edje_jax.models.heads.masked_lm import MaskedLmHead
from edje_jax.models.layer_stack import run_layers
from edje_jax.models.pair_scorer import PairScorer

WORD_LOGITS = 1 << 26
"""Logits of words that exist at once: 268 MB in float32."""


class EncodedCaptions(NamedTuple):
    """Captions, and what is known of them before they meet an image."""

    ids: Int[Array, "b t"]
    without_image: Float[Array, " b"]
    """Sum of log p over the tokens, without an image."""


class LogProbabilities(NamedTuple):
    """Natural logarithms of the probabilities of a caption's tokens, float32."""

    values: Float[Array, "r b t"]
    """By direction, in `CaptionerConfig.reads`, in the order of reading; 0 where there is none."""
    present: Bool[Array, "b t"]
    """Which of them exist. Both directions predict equally many."""

    @property
    def sum(self) -> Float[Array, " b"]:
        """Sum over directions and tokens."""
        return jnp.sum(self.values, axis=(0, 2))


class Captioner(PairScorer):
    """Adapter and decoders. Parameters are `adapter` and `captioner`."""

    def setup(self):
        self.adapter = self.make_adapter()
        self.captioner = CaptionDecoders(
            self.config, self.dtype, self.dropout, self.remat, self.scan
        )

    def compress(self, vision_tokens: Float[Array, "b *f n w"]) -> Float[Array, "b m d"]:
        """Vision tokens of the backbone -> what the store keeps, and the decoders attend to."""
        return self.adapt(vision_tokens)

    def log_probabilities(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"] | None,
        train: bool = False,
    ) -> LogProbabilities:
        """Log-probabilities of all tokens but the first that is read, [b, t-1] by direction, beside
        an image, or without one."""
        return self.captioner(ids, tokens, train)

    def encode_text(self, ids: Int[Array, "b t"], train: bool = False) -> EncodedCaptions:
        """Score captions without an image, which "pmi" takes away."""
        return EncodedCaptions(ids, self.log_probabilities(ids, None, train).sum)

    def match(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Scores of pairs, in nats: "sum", "mean" or "pmi", as the config says."""
        if self.config.encodes_captions:
            return self.match_encoded(self.encode_text(ids, train), tokens, train)
        found = self.log_probabilities(ids, tokens, train)
        if self.config.captioner and self.config.captioner.score == "sum":
            return found.sum
        return found.sum / jnp.maximum(jnp.sum(found.present.astype(jnp.float32), axis=1), 1.0)

    def match_encoded(
        self,
        text: EncodedCaptions,
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Scores of pairs less those of the captions alone ("pmi")."""
        return self.log_probabilities(text.ids, tokens, train).sum - text.without_image

    def __call__(self, vision_tokens: Float[Array, "b *f n w"], ids: Int[Array, "b t"]) -> Array:
        """Run every part once, which is what initialises every parameter."""
        beside = self.log_probabilities(ids, self.compress(vision_tokens))
        return beside.sum - self.log_probabilities(ids, None).sum


class CaptionDecoders(nn.Module):
    """Decoders of one or both directions, with the embeddings and the output layer they share."""

    config: EdjeConfig
    dtype: jax.typing.DTypeLike
    dropout: float
    remat: bool
    scan: bool

    def setup(self):
        bert, captioner = self.config.joint_encoder, self.config.captioner
        assert captioner is not None
        self.embeddings = Embeddings(bert, self.dtype, self.dropout)
        self.word_head = MaskedLmHead(bert, self.dtype)
        how = self.dtype, self.dropout, self.remat, self.scan
        if "forward" in captioner.reads:
            self.forward = Decoder(self.config, *how)
        if "backward" in captioner.reads:
            self.backward = Decoder(self.config, *how)
        init = nn.initializers.normal(bert.initializer_range)
        self.no_image = self.param("no_image", init, (1, 1, bert.hidden_size))

    def __call__(
        self, ids: Int[Array, "b t"], tokens: Float[Array, "b m d"] | None, train: bool
    ) -> LogProbabilities:
        """See `Captioner.log_probabilities`."""
        captioner = self.config.captioner
        assert captioner is not None
        seen = None
        if tokens is None:
            shape = (len(ids), 1, self.config.joint_encoder.hidden_size)
            tokens = jnp.broadcast_to(self.no_image.astype(self.dtype), shape)
        elif self.config.may_miss_frames:
            seen = Padding(present_rows(self.config, tokens))
        tokens = tokens.astype(self.dtype)
        present = ids != self.config.joint_encoder.pad_token_id
        orders = {"forward": lambda: ids, "backward": lambda: reverse(ids, present)}
        decoders = {name: getattr(self, name) for name in captioner.reads}
        found = [
            self._read(decoder, orders[name](), present, tokens, seen, train)
            for name, decoder in decoders.items()
        ]
        return LogProbabilities(jnp.stack(found), present[:, 1:])

    def _read(
        self,
        decoder: "Decoder",
        ids: Int[Array, "b t"],
        present: Bool[Array, "b t"],
        tokens: Float[Array, "b m d"],
        seen: Padding | None,
        train: bool,
    ) -> Float[Array, "b s"]:
        """Log p of every token after the first, in the order of `ids`."""
        read, predicted, there = ids[:, :-1], ids[:, 1:], present[:, 1:]
        positions = jnp.broadcast_to(jnp.arange(read.shape[1])[None], read.shape)
        words = self.embeddings.words(read)
        x = self.embeddings(words, positions, jnp.zeros_like(read), train)
        x = decoder(x, present[:, :-1], tokens, seen, train)
        table = jnp.asarray(self.embeddings.word.embedding, self.dtype)
        bias = jnp.asarray(self.word_head.bias)
        found = word_log_probabilities(self.word_head(x), table, bias, predicted)
        return jnp.where(there, found, 0.0)


def word_log_probabilities(
    hidden: Float[Array, "b s d"],
    table: Float[Array, "v d"],
    bias: Float[Array, " v"],
    words: Int[Array, "b s"],
    at_once: int = WORD_LOGITS,
) -> Float[Array, "b s"]:
    """Log p of given words, float32, of softmax(hidden @ table.T + bias).

    Places of the captions are worked through some at a time, so that no more than about `at_once`
    logits exist, in a backward pass too.
    """

    def of_place(place: tuple[Float[Array, "b d"], Int[Array, " b"]]) -> Float[Array, " b"]:
        hidden, words = place
        logits = jnp.matmul(hidden, table.T, preferred_element_type=jnp.float32) + bias[None]
        chosen = jnp.take_along_axis(logits, words[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    places = jnp.swapaxes(hidden, 0, 1), jnp.swapaxes(words, 0, 1)
    few = max(1, at_once // (len(hidden) * len(bias)))
    if few >= hidden.shape[1]:
        found = jax.vmap(of_place)(places)
    else:
        found = jax.lax.map(jax.checkpoint(of_place), places, batch_size=few)
    return jnp.swapaxes(found, 0, 1)


class Decoder(nn.Module):
    """Layers of one direction: `layers_0`, `layers_1`, ..."""

    config: EdjeConfig
    dtype: jax.typing.DTypeLike
    dropout: float
    remat: bool
    scan: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        present: Bool[Array, "b t"],
        tokens: Float[Array, "b m d"],
        seen: Padding | None,
        train: bool,
    ) -> Float[Array, "b t d"]:
        bert, captioner = self.config.joint_encoder, self.config.captioner
        assert captioner is not None
        kind = nn.remat(DecoderLayer, static_argnums=(5,)) if self.remat else DecoderLayer
        layers = [
            kind(bert, captioner.cross_attention, self.dtype, self.dropout, name=f"layers_{i}")
            for i in range(bert.num_hidden_layers)
        ]
        return run_layers(
            self, layers, x, lambda layer, x: layer(x, present, tokens, seen, train), self.scan
        )[-1]


def reverse(ids: Int[Array, "b t"], present: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Reverse each row's tokens; padding stays behind them."""
    return jnp.take_along_axis(ids, reversed_places(present), axis=1)


def reversed_places(present: Bool[Array, "b t"]) -> Int[Array, "b t"]:
    """Place of each row's tokens when the row is reversed; padding keeps its own."""
    count = jnp.sum(present.astype(jnp.int32), axis=1, keepdims=True)
    place = jnp.arange(present.shape[1], dtype=jnp.int32)[None]
    return jnp.where(place < count, count - 1 - place, place)
