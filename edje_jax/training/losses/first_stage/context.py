"""Batch of embeddings as the losses of the first-stage heads read it.

A term is the file of its name in this folder, with a function `loss(context)`, and a weight of that
name in `FirstStageLoss`. A weight of 0 skips the term's work too.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.first_stage_run import FirstStageLoss
from edje_jax.models.heads.first_stage import FirstStageOutput
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.sharding import Devices


class Lists(NamedTuple):
    """Queries of a batch with their candidates, and the teacher's scores of these."""

    queries: FirstStageOutput
    """Heads' output of the queries, [r, e] and [r, bits]."""
    candidates: FirstStageOutput
    """Heads' output of their candidates, [r, c, e] and [r, c, bits]."""
    scores: Float[Array, "r c"]
    usable: Bool[Array, "r c"]


class Sides(NamedTuple):
    """Queries of a batch and all that they are compared with, own pairs at equal places."""

    queries: FirstStageOutput
    items: FirstStageOutput
    cosines: Float[Array, "b b"]
    """Cosines of the backbone's embeddings, [query, item]."""


@dataclass(frozen=True)
class FirstStageContext:
    """A batch beside the heads' parameters.

    Every device holds the whole batch, as embeddings are small; of each [query, item] array it
    computes some rows, so that nothing is sent but the sums at the end.
    """

    config: FirstStageConfig
    loss: FirstStageLoss
    devices: Devices
    scales: PyTree
    """Logarithms of the factors that turn similarities into logits: `embeddings` [], and, of heads
    with codes, `codes` [number of lengths]."""
    sides: tuple[Sides, Sides]
    """Captions that ask for images, and images that ask for captions."""
    positive: Bool[Array, "b b"]
    """Pairs of the same image or caption, of which none is a negative."""
    valid: Bool[Array, " b"]
    lists: tuple[Lists, ...] = ()
    """Captions with images, and images with captions, of the rows that follow the teacher."""

    @property
    def temperature(self) -> float:
        """Divisor of the teacher's scores."""
        assert self.loss.temperature is not None, "FirstStageLoss.with_temperature"
        return self.loss.temperature

    @property
    def scale(self) -> Float[Array, ""]:
        """Factor of cosines."""
        return jnp.exp(self.scales["embeddings"])

    @property
    def code_scales(self) -> Float[Array, " lengths"]:
        """Factors of the similarities of codes, one for each length."""
        return jnp.exp(self.scales["codes"])

    def similarities_of_codes(self, side: Sides) -> Float[Array, "lengths b b"]:
        """Cosines of codes at every length, [query, item]."""
        queries = self.devices.shard_rows(signs(side.queries.projections))
        items = signs(side.items.projections)
        return similarities_by_length("ik,jk->ij", queries, items, self.config.code_lengths)


@jax.custom_jvp
def signs(projections: Float[Array, "... bits"]) -> Float[Array, "... bits"]:
    """Codes of -1 and 1, with the gradient of tanh (straight-through; Bengio et al., 2013)."""
    return jnp.where(projections > 0, 1.0, -1.0)


@signs.defjvp
def _signs_jvp(primals, tangents):
    (projections,), (tangent,) = primals, tangents
    return signs(projections), tangent * (1 - jnp.square(jnp.tanh(projections)))


def products_by_length(
    equation: str,
    a: Float[Array, "... bits"],
    b: Float[Array, "... bits"],
    lengths: tuple[int, ...],
) -> Float[Array, "lengths ..."]:
    """Inner products of the beginnings of two arrays at every length, each part multiplied once.

    `equation` is an einsum over the last axis of both, such as "ik,jk->ij".
    """
    starts = (0, *lengths[:-1])
    parts = [
        jnp.einsum(equation, a[..., start:stop], b[..., start:stop])
        for start, stop in zip(starts, lengths, strict=True)
    ]
    return jnp.cumsum(jnp.stack(parts), axis=0)


def similarities_by_length(
    equation: str,
    a: Float[Array, "... bits"],
    b: Float[Array, "... bits"],
    lengths: tuple[int, ...],
) -> Float[Array, "lengths ..."]:
    """Cosines of codes (-1 and 1) at every length."""
    products = products_by_length(equation, a, b, lengths)
    bits = jnp.array(lengths, jnp.float32)
    return products / bits.reshape(-1, *(1 for _ in products.shape[1:]))


def contrastive(
    logits: Float[Array, "b b"], positive: Bool[Array, "b b"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """InfoNCE (arXiv 1807.03748) of each query's own item, on the diagonal, against all items that
    are no positives."""
    own = jnp.eye(len(logits), dtype=bool)
    rivals = own | (~positive & valid[None, :])
    per_row = jax.nn.logsumexp(jnp.where(rivals, logits, -jnp.inf), axis=1)
    return masked_mean(per_row - jnp.sum(jnp.where(own, logits, 0.0), axis=1), valid)
