"""EDJE (arXiv 2510.06820): image -> compressed tokens -> match logit."""

from jaxtyping import Array, Float, Int

from edje_jax.models.joint_encoder import JointEncoder, TextSide
from edje_jax.models.pair_scorer import PairScorer


class Edje(PairScorer):
    """Adapter and joint encoder: see `PairScorer`.

    Parameters are `adapter` and `joint_encoder`.
    """

    def setup(self):
        self.adapter = self.make_adapter()
        self.joint_encoder = JointEncoder(
            self.config, self.dtype, self.dropout, self.remat, self.scan
        )

    def compress(self, vision_tokens: Float[Array, "b *f n w"]) -> Float[Array, "b m d"]:
        """Vision tokens of the backbone -> what the store keeps.

        Deferred layers are part of it, without dropout.
        """
        return self.joint_encoder.run_deferred_layers(self.adapt(vision_tokens))

    def encode_text(self, ids: Int[Array, "b t"], train: bool = False) -> TextSide:
        """Run the text side of the deferred layers on captions."""
        return self.joint_encoder.encode_text(ids, train)

    def match(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Match logits, pair by pair; `similarity` is the first stage's cosine of each pair, which
        a model with a similarity prior needs and any other leaves aside."""
        pairs = self.joint_encoder.join(ids, tokens, train)
        return self.joint_encoder.match(pairs, train, similarity)

    def match_encoded(
        self,
        text: TextSide,
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Match logits of captions that `encode_text` has read."""
        pairs = self.joint_encoder.join_encoded(text, tokens)
        return self.joint_encoder.match(pairs, train, similarity)

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
        """The embedded input and every layer's output, in memory order; where layers are deferred,
        from the last of them on."""
        return self.joint_encoder.hidden_states(ids, tokens)

    def __call__(self, vision_tokens: Float[Array, "b *f n w"], ids: Int[Array, "b t"]) -> Array:
        """Run every part once, which is what initialises every parameter."""
        return self.joint_encoder(ids, self.compress(vision_tokens))
