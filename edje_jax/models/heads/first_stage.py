"""Heads of the first stage: embeddings and codes, made of a frozen backbone's embeddings.

Each modality has heads of its own. With x the backbone's embedding (unit length), z = x or,
for images where the config says so, [x, mean of the compressed tokens], and f a linear layer, or
two with a GELU between:

    embedding   y = (x + f(z)) / |x + f(z)|
    projection  u = (z - mean) W     (or two layers)      code = [u > 0]

f starts at zero, so that a fresh head gives the backbone's embedding bit for bit. `mean` is that of
the training set: taking it away for each modality balances the bits. Of a projection the first b
numbers give the code of b bits, so that short codes are the beginnings of long ones (Matryoshka,
arXiv 2205.13147, for codes).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.models.bert import DTypeLike


class FirstStageOutput(NamedTuple):
    """Embeddings and projections of some images or captions."""

    embeddings: Float[Array, "n e"]
    """Unit length, as exactly as the backbone's are."""
    projections: Float[Array, "n bits"]
    """Numbers whose signs are the bits of a code; [n, 0] without a code head."""


class ModalityHeads(nn.Module):
    """Both heads of images, or of captions; computed in float32."""

    config: FirstStageConfig

    @nn.compact
    def __call__(
        self, embeddings: Float[Array, "n e"], pooled: Float[Array, "n d"] | None = None
    ) -> FirstStageOutput:
        inputs = embeddings if pooled is None else jnp.concatenate([embeddings, pooled], axis=1)
        move = _Layers(self.config.hidden_size, embeddings.shape[1], True, name="move")(inputs)
        # |x + f|^2 is 1 + f (2x + f), as x has unit length: exactly 1 for f = 0.
        square = 1 + jnp.sum(move * (2 * embeddings + move), axis=1, keepdims=True)
        moved = (embeddings + move) / jnp.sqrt(jnp.maximum(square, 1e-12))
        if not self.config.bits:
            return FirstStageOutput(moved, jnp.zeros((len(inputs), 0)))
        mean = self.param("mean", nn.initializers.zeros, (inputs.shape[1],))
        code = _Layers(self.config.hidden_size, self.config.bits, False, name="code")
        return FirstStageOutput(moved, code(inputs - jax.lax.stop_gradient(mean)[None]))


class _Layers(nn.Module):
    """A linear layer, with one and a GELU before it where `hidden_size` is not 0; `is_zero` starts
    the last one at zero, and gives it a bias."""

    hidden_size: int
    features: int
    is_zero: bool

    @nn.compact
    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n o"]:
        if self.hidden_size:
            x = nn.gelu(nn.Dense(self.hidden_size, precision="highest", name="hidden")(x))
        start = nn.initializers.zeros if self.is_zero else rotations
        return nn.Dense(
            self.features, self.is_zero, precision="highest", kernel_init=start, name="out"
        )(x)


def rotations(key: Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> Array:
    """Random rotations beside each other, as many as so many outputs take, so that bits which stand
    near each other tell different things; projections of unit-length rows have a deviation near 1.
    """
    size, outputs = shape
    keys = jax.random.split(key, -(-outputs // size))
    blocks = [nn.initializers.orthogonal(size**0.5)(each, (size, size), dtype) for each in keys]
    return jnp.concatenate(blocks, axis=1)[:, :outputs]


class FirstStageHeads(nn.Module):
    """Heads of both modalities, as a pure function of their parameters `image` and `text`."""

    config: FirstStageConfig

    def setup(self):
        self.image = ModalityHeads(self.config)
        self.text = ModalityHeads(self.config)

    def of_images(
        self, embeddings: Float[Array, "n e"], tokens: Float[Array, "n m d"] | None = None
    ) -> FirstStageOutput:
        """Embeddings and projections of images, from the backbone's embeddings and, where the
        heads read them, from compressed tokens."""
        pooled = tokens.mean(axis=1) if self.config.reads_tokens and tokens is not None else None
        return self.of_pooled_images(embeddings, pooled)

    def of_pooled_images(
        self, embeddings: Float[Array, "n e"], pooled: Float[Array, "n d"] | None = None
    ) -> FirstStageOutput:
        """As `of_images`, from the mean of each image's compressed tokens."""
        return self.image(embeddings, pooled)

    def of_texts(self, embeddings: Float[Array, "n e"]) -> FirstStageOutput:
        """Embeddings and projections of captions, from the backbone's embeddings."""
        return self.text(embeddings)

    def __call__(
        self, embeddings: Float[Array, "n e"], pooled: Float[Array, "n d"] | None = None
    ) -> FirstStageOutput:
        """Run both, which is what initialises every parameter."""
        self.text(embeddings)
        return self.image(embeddings, pooled)


def expected_heads(config: EdjeConfig) -> PyTree[jax.ShapeDtypeStruct]:
    """Tree, shapes and dtypes of the heads' parameters; nothing is allocated."""
    return jax.eval_shape(lambda: fresh_heads(config, jax.random.key(0)))


def fresh_heads(config: EdjeConfig, key: Array) -> PyTree[Array]:
    """Parameters of heads that give the backbone's embeddings, and codes by random rotations, the
    same ones for images and captions."""
    first_stage = config.first_stage
    assert first_stage is not None
    embeddings = jnp.zeros((1, config.backbone.text.projection_size))
    pooled = None
    if first_stage.reads_tokens:
        pooled = jnp.zeros((1, config.joint_encoder.hidden_size))
    params = FirstStageHeads(first_stage).init(key, embeddings, pooled)["params"]
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    for name, text in list(flat.items()):
        if name.startswith("text/code/"):
            own = flat[image := name.replace("text", "image", 1)]
            # Tokens, which captions have no counterpart of, count for nothing yet.
            flat[image] = jnp.zeros_like(own).at[: len(text)].set(text)
    return unflatten_dict(flat, sep="/")
