"""Positions of vision rows where a training begins, and frames that can be told apart by them.

The joint encoder adds a row of positions to every token and normalises the sum: a position counts
by its size beside the token's. Adapters make tokens far larger than positions (1.6 beside 0.05
where both are fresh, 7 beside 0.06 in "shapes-demo"). Frames in another order then give nearly the
same rows, and a training of minutes does not find out that they differ. It therefore begins with

    tokens of the size s           W_p and b_p of the adapter's last layer, times one number
    positions of a frame's own     p(frame i, token j) = p(frame 0, token j) + z_i, z_0 = 0

with z_i ~ N(0, s^2), where sizes are root mean squares and s = 0.4. Such tokens are to the joint
encoder nearly what they were, as it normalises them. The second is for models with deferred layers,
whose vision rows stand where no word does. Both are ours: VEDJE does not say how its order comes to
be learned. (Words and positions are smaller than s, but an s as small as theirs fails: a hundred
steps of the optimiser, which change all tables alike, bury the order again.)
"""

import dataclasses
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from edje_jax.config.model import EdjeConfig, ImageRecipe
from edje_jax.data.loader import TrainingBatches
from edje_jax.models.pair_scorer import PairScorer
from edje_jax.models.towers import DualTower
from edje_jax.training.edje_step import encode
from edje_jax.weights.folder import Model

log = logging.getLogger(__name__)

SIZE = 0.4
"""Root mean square of tokens, and deviation of the positions of frames."""
ROWS = 8
"""Videos of which the size of tokens is measured, at most."""
POSITIONS = "joint_encoder/embeddings/position/embedding"


@dataclass(frozen=True)
class KnownFrames:
    """Parts of a model of videos that --init has trained, which a run leaves as they are."""

    tokens: bool = False
    """Whether the adapter is one of videos."""
    positions: int = 0
    """Frames, from the first, whose positions are trained."""


def tells_order(config: EdjeConfig) -> bool:
    """Whether a model reads several frames and knows their order, as a captioner never does."""
    return config.may_miss_frames and config.captioner is None


def known_frames(init: Model | None, whole: EdjeConfig, own_encoder: bool) -> KnownFrames:
    """Parts that a run of `whole` has from its --init; `own_encoder` says that its joint encoder is
    another."""
    if init is None or not tells_order(init.config):
        return KnownFrames()
    theirs = init.config
    both_defer = theirs.joint_encoder.deferred_layers and whole.joint_encoder.deferred_layers
    goes_on = both_defer and theirs.tokens_per_frame == whole.tokens_per_frame and not own_encoder
    return KnownFrames(theirs.adapter == whole.adapter, theirs.frames if goes_on else 0)


def measured_size(
    reader: TrainingBatches,
    backbone: DualTower,
    backbone_params: PyTree[np.ndarray],
    recipe: ImageRecipe,
    model: PairScorer,
    params: PyTree[np.ndarray],
) -> float:
    """Size of the compressed tokens of the first videos that are trained on; 0 if none of them can
    be read."""
    data = dataclasses.replace(reader.data, batch_size=min(reader.data.batch_size, ROWS))
    batch, _ = dataclasses.replace(reader, data=data, process=(0, 1))[0]
    features = batch.features or jax.jit(partial(encode, backbone, recipe=recipe))(
        backbone_params, batch
    )
    return token_size(model, params, features.vision_tokens)


def token_size(
    model: PairScorer, params: PyTree[np.ndarray], vision_tokens: np.ndarray | jax.Array
) -> float:
    """Root mean square of the compressed tokens of frames that are there, of vision tokens
    [b, f, n, w] that may be wider than the model's; 0 if no frame is there."""
    adapt = jax.jit(partial(model.apply, method=model.adapt))
    of_model = vision_tokens[..., : model.config.backbone.token_width]
    rows = np.asarray(adapt({"params": params}, of_model), np.float64)
    rows = rows[np.any(rows != 0, axis=-1)]
    return float(np.sqrt(np.mean(rows**2))) if rows.size else 0.0


def frames_apart(
    config: EdjeConfig, params: PyTree[np.ndarray], known: KnownFrames, size: float, seed: int
) -> PyTree[np.ndarray]:
    """Parameters that change where a model of videos begins, whose tokens have the given size."""
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    changed: dict[str, Any] = {}
    if not known.tokens:
        last = "projection" if config.adapter.kind == "compress" else "fc2"
        paths = (f"adapter/{last}/kernel", f"adapter/{last}/bias")
        changed = {path: flat[path] * np.float32(SIZE / size) for path in paths}
        log.info("tokens of videos begin with the size %g, %.3g before", SIZE, size)
    first_new = max(known.positions, 1)
    if config.joint_encoder.deferred_layers and first_new < config.frames:
        table, start = np.array(flat[POSITIONS]), config.max_text_length
        each = config.tokens_per_frame
        drawn = np.random.default_rng(seed).normal(0, SIZE, (config.frames, 1, table.shape[1]))
        new = drawn[first_new:] + table[start : start + each]
        table[start + first_new * each : start + config.num_tokens] = np.concatenate(new)
        changed[POSITIONS] = table
        log.info("positions of the frames from %d on begin apart", first_new)
    return unflatten_dict(changed, sep="/")


def with_vision_positions(
    init: Model, whole: EdjeConfig, params: PyTree[np.ndarray]
) -> PyTree[np.ndarray]:
    """Parameters of --init whose vision rows keep their positions' where a run reads longer or
    shorter captions: with deferred layers, they and their [SEP] stand after the longest one."""
    theirs = init.config
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    stood = theirs.joint_encoder.deferred_layers and whole.joint_encoder.deferred_layers
    old, new = theirs.max_text_length, whole.max_text_length
    if not stood or POSITIONS not in flat or (old, theirs.num_tokens) == (new, whole.num_tokens):
        return params
    before, table = flat[POSITIONS], np.array(flat[POSITIONS])
    rows = min(theirs.num_tokens, whole.num_tokens)
    if theirs.frames > 1 and theirs.tokens_per_frame != whole.tokens_per_frame:
        rows = min(theirs.tokens_per_frame, whole.tokens_per_frame)
    # A short table stands for a longer one that goes on with its last row.
    stood_at = np.minimum(
        [*range(old, old + rows), old + theirs.num_tokens],
        theirs.joint_encoder.max_position_embeddings - 1,
    )
    table[[*range(new, new + rows), new + whole.num_tokens]] = before[stood_at]
    log.info(
        "the positions of %d vision rows of --init %s go on after captions of %d pieces",
        rows, init.source, new,
    )  # fmt: skip
    return unflatten_dict({**flat, POSITIONS: table}, sep="/")
