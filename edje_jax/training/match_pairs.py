"""Match logits of the pairs of a batch: each row's own pair, and its negatives of both kinds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from edje_jax.models.pair_scorer import PairScorer
from edje_jax.training.negatives import Negatives, Pairs
from edje_jax.training.sharding import Devices


class ScoredRows(NamedTuple):
    """Rows of a batch whose pairs are scored."""

    index: Int[Array, " r"]
    """Indices of the rows in the batch."""
    negatives: Negatives
    similarities: Pairs | None = None
    """The backbone's cosines of the pairs, which a model with a similarity prior needs."""


def match_pairs(
    bound: Callable[[], PairScorer],
    ids: Int[Array, "p t"],
    tokens: Float[Array, "p m d"],
    rows: ScoredRows,
    devices: Devices,
    training: bool = False,
) -> Pairs:
    """Score all 1 + 2K pairs of each row in one pass.

    Args:
        bound: the model with its parameters, anew for each call, as a module counts its draws.
        ids: captions that pairs are made of, in the joint encoder's tokens: those of the batch, and
            after them others that negatives come from.
        tokens: compressed tokens of the images, likewise.
    """
    count, k = rows.negatives.images.shape
    own = jnp.repeat(rows.index, k)
    text_rows = jnp.concatenate([rows.index, own, rows.negatives.captions.reshape(-1)])
    image_rows = jnp.concatenate([rows.index, rows.negatives.images.reshape(-1), own])
    config, similarities = bound().config, None
    if config.similarity_prior and rows.similarities is not None:
        similarities = jnp.concatenate([each.reshape(-1) for each in rows.similarities])
        similarities = devices.shard_rows(similarities)
    tokens = devices.shard_rows(devices.replicate(tokens)[image_rows])
    # What a caption alone decides is computed once, unless there are more captions than pairs.
    if config.encodes_captions and len(ids) <= len(text_rows):
        read = devices.replicate(bound().encode_text(ids, training))
        text = devices.shard_rows(jax.tree.map(lambda leaf: leaf[text_rows], read))
        logits = bound().match_encoded(text, tokens, training, similarities)
    else:
        text = devices.shard_rows(devices.replicate(ids)[text_rows])
        logits = bound().match(text, tokens, training, similarities)
    positive, images, captions = jnp.split(devices.replicate(logits), [count, count + count * k])
    return Pairs(positive, images.reshape(count, k), captions.reshape(count, k))
