"""The first-stage heads of a model on JAX devices, after its backbone.

They are programs of their own, so that the backbone's embeddings do not depend on whether there are
heads.
"""

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, PyTree

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.data.buckets import batches
from edje_jax.models.heads.first_stage import FirstStageHeads
from edje_jax.runtimes.base import Embedded
from edje_jax.runtimes.dual_encoder import TEXT_BATCHES


def heads_of_texts(
    config: FirstStageConfig, params: PyTree, embeddings: Float32[np.ndarray, "n e"]
) -> Embedded:
    """Embeddings and projections of captions, from the backbone's embeddings."""
    moved = np.empty_like(embeddings)
    projections = np.empty((len(embeddings), config.bits), np.float32)
    for rows, count in batches(np.arange(len(embeddings)), TEXT_BATCHES):
        made = _of_texts(config, params, embeddings[rows])
        moved[rows[:count]], projections[rows[:count]] = (np.asarray(x)[:count] for x in made)
    return Embedded(moved, projections)


@partial(jax.jit, static_argnums=0)
def heads_of_images(
    config: FirstStageConfig,
    params: PyTree,
    embeddings: Float[Array, "b e"],
    tokens: Float[Array, "b m d"],
) -> tuple[Array, Array]:
    """Embeddings and projections of a batch of images, under way on their device."""
    made = FirstStageHeads(config).bind({"params": params}).of_images(embeddings, tokens)
    return made.embeddings, made.projections


@partial(jax.jit, static_argnums=0)
def _of_texts(config: FirstStageConfig, params: PyTree, embeddings: Array) -> tuple[Array, Array]:
    made = FirstStageHeads(config).bind({"params": params}).of_texts(embeddings)
    return made.embeddings, made.projections
