"""Future-difference loss of videos (VEDJE, OpenReview ZqB0Ab4juk): tokens of a frame foresee the
change of the frozen vision tokens.

    mean over pairs (t, t + h) of  | predictor(tokens_t, h) - (X_{t+h} - X_t) |^2

The paper's are the two layers of the predictor, its fixed queries, h = 3, and a mean over all
pairs of a video. Ours: vision tokens X are brought to mean 0 and deviation 1 over their width, so
that backbones of any scale weigh alike; h is smaller where fewer frames are read; pairs count that
are both there; and a video without such a pair counts as 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.models.heads.future_predictor import LAYERS, FuturePredictor
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.term import RowContext, Term

HORIZON = 3
"""Frames from one to the later one, as in the paper."""
NAME = "future_difference"


def horizon_of(config: EdjeConfig) -> int:
    """Frames between those of a pair: `HORIZON`, or as far as the frames that are read allow."""
    return min(HORIZON, config.frames - 1)


def future_difference_loss(
    predicted: Float[Array, "b p n w"],
    vision_tokens: Float[Array, "b f n w"],
    valid: Bool[Array, " b"],
    count: Int[Array, ""] | None = None,
) -> Float[Array, ""]:
    """Mean squared error of the predicted changes, averaged over the pairs of each video and then
    over videos; frames that are not there are all zeros."""
    pairs = predicted.shape[1]
    horizon = vision_tokens.shape[1] - pairs
    there = jnp.any(vision_tokens != 0, axis=(2, 3))
    both = (there[:, :pairs] & there[:, horizon:]).astype(jnp.float32)
    tokens = standardised(vision_tokens)
    change = tokens[:, horizon:] - tokens[:, :pairs]
    errors = jnp.mean(jnp.square(predicted - change), axis=(2, 3))
    each = jnp.sum(errors * both, axis=1) / jnp.maximum(jnp.sum(both, axis=1), 1.0)
    return masked_mean(each, valid, count)


def standardised(tokens: Float[Array, "*b w"]) -> Float[Array, "*b w"]:
    """Bring vectors to mean 0 and deviation 1, in float32; those of all zeros stay so."""
    tokens = tokens.astype(jnp.float32)
    tokens = tokens - jnp.mean(tokens, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(tokens), axis=-1, keepdims=True)
    return tokens / jnp.sqrt(variance + 1e-6)


def _loss(context: RowContext) -> Float[Array, ""]:
    config, (rows, tokens) = context.model.config, context.auxiliary
    assert rows.vision_tokens is not None
    horizon, each = horizon_of(config), config.tokens_per_frame
    seen = rows.vision_tokens[..., : config.backbone.token_width]
    pairs = config.frames - horizon
    now = tokens[:, : pairs * each].reshape(len(tokens) * pairs, each, tokens.shape[2])
    predictor = FuturePredictor(config, context.model.dtype)
    predicted = predictor.apply({"params": context.params[NAME]}, now, horizon)
    assert isinstance(predicted, jnp.ndarray)
    predicted = predicted.reshape(len(tokens), pairs, *predicted.shape[1:])
    return future_difference_loss(predicted, seen, rows.valid, context.counts.auxiliary_rows)


def _init_head(config: EdjeConfig, key: Array) -> PyTree:
    tokens = jnp.zeros((1, config.tokens_per_frame, config.joint_encoder.hidden_size))
    return FuturePredictor(config).init(key, tokens, horizon_of(config))["params"]


def _refuses(config: EdjeConfig) -> str:
    if config.video is None:
        return "a model of images has no later frame; set it to 0, or add --model.video.frames"
    if config.frames < 2:
        return "one frame has no later one; set it to 0, or raise --model.video.frames"
    if config.video.pooling != "none":
        return (
            "the mean over the frames has no tokens of a single one; set it to 0, or leave out"
            f" --model.video.pooling {config.video.pooling}"
        )
    if config.joint_encoder.deferred_layers:
        return (
            "deferred layers have shown each frame's tokens the later frames; set it to 0, or"
            " --model.deferred-layers 0"
        )
    return ""


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    pairs, patches = config.frames - horizon_of(config), config.backbone.num_vision_tokens
    width, kept = config.joint_encoder.hidden_size, config.tokens_per_frame
    # Queries and results are projected, keys and values of the tokens too; the MLP is 4 wide.
    layer = patches * 10 * width**2 + kept * 2 * width**2 + 2 * patches * kept * width
    products = LAYERS * layer + patches * width * config.backbone.token_width
    return 2.0 * pairs * products / loss.auxiliary_stride


TERM = Term(
    _loss,
    _flops,
    comes_first=True,
    kinds=("edje", "captioner"),
    refuses=_refuses,
    init_head=_init_head,
    reads_vision_tokens=True,
)
