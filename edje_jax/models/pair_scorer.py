"""The interface of models that score pairs of a caption and an image's stored tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edje_jax.config.model import EdjeConfig
from edje_jax.models.adapters import make_adapter
from edje_jax.models.frames import adapt_frames


class PairScorer(nn.Module):
    """Adapter, and what scores a pair; the frozen backbone stands apart.

    Vision tokens are [b, n, w] of images, and [b, f, n, w] of the videos of a model that reads
    such (`models.frames`).

    Text ids are [CLS] caption [SEP] and padding, int32 [b, t]; `tokens` are compressed tokens
    [b, m, d]. Logits leave in float32. `models.scorers` has the table of subclasses.
    """

    config: EdjeConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    dropout: float = 0.0
    remat: bool = False
    scan: bool = False
    """Whether layers of one kind are one loop of the program (`layer_stack`)."""

    def make_adapter(self) -> nn.Module:
        """The adapter that the config names, for `setup`."""
        return make_adapter(self.config, self.dtype, name="adapter")

    def adapt(self, vision_tokens: Float[Array, "b *f n w"]) -> Float[Array, "b m d"]:
        """Run `adapter`, of a model of videos over each frame."""
        vision_tokens = vision_tokens.astype(self.dtype)
        if not self.config.video:
            return self.adapter(vision_tokens)
        return adapt_frames(self.adapter, vision_tokens, self.config.video.pooling)

    def compress(self, vision_tokens: Float[Array, "b *f n w"]) -> Float[Array, "b m d"]:
        """Vision tokens of the backbone -> what the store keeps."""
        raise NotImplementedError

    def encode_text(self, ids: Int[Array, "b t"], train: bool = False) -> Any:
        """Compute what a caption alone decides, once for all images that it meets; of a model whose
        config `encodes_captions`."""
        raise NotImplementedError

    def match(
        self,
        ids: Int[Array, "b t"],
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Match logits, pair by pair; `similarity` is the first stage's cosine of each pair, which
        a model with a similarity prior needs and any other leaves aside."""
        raise NotImplementedError

    def match_encoded(
        self,
        text: Any,
        tokens: Float[Array, "b m d"],
        train: bool = False,
        similarity: Float[Array, " b"] | None = None,
    ) -> Float[Array, " b"]:
        """Match logits of captions that `encode_text` has read."""
        raise NotImplementedError
