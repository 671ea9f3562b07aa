"""Masked LM: choosing the tokens that are hidden, and a static number of places to predict."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def choose_masked(
    ids: Int[Array, "b t"],
    valid: Bool[Array, " b"],
    probability: float,
    special_ids: Sequence[int],
    rng: Array,
) -> Bool[Array, "b t"]:
    """Choose the tokens that are hidden, each with a probability; special ids and invalid rows
    never are."""
    special = jnp.isin(ids, jnp.asarray(special_ids, ids.dtype))
    return ~special & valid[:, None] & jax.random.bernoulli(rng, probability, ids.shape)


class MaskedPlaces(NamedTuple):
    """A static number of places for the masked-LM head to fill."""

    positions: Int[Array, "g p"]
    """Into the flattened ids of each of g equal groups of rows."""
    labels: Int[Array, "g p"]
    used: Bool[Array, "g p"]


def masked_places(
    ids: Int[Array, "b t"], masked: Bool[Array, "b t"], probability: float, groups: int = 1
) -> MaskedPlaces:
    """Find the positions of the hidden tokens, and their ids.

    The head then runs on g * p places instead of b * t: p is six standard deviations above the
    number expected of a group of full captions, so that none is left out in practice. Groups are
    the devices', each of which then fills places of its own rows.
    """
    size = ids.size // groups
    most = ids.shape[0] // groups * max(ids.shape[1] - 2, 1)
    deviation = math.sqrt(most * probability * (1 - probability))
    places = min(math.ceil(most * probability + 6 * deviation), size)

    def group(ids: Int[Array, " n"], masked: Bool[Array, " n"]) -> tuple[Array, Array, Array]:
        positions = jnp.nonzero(masked, size=places, fill_value=0)[0]
        return positions, ids[positions], jnp.arange(places) < jnp.sum(masked)

    return MaskedPlaces(*jax.vmap(group)(ids.reshape(groups, size), masked.reshape(groups, size)))
