"""The loss of some rows of a batch: matching, masked LM, text recovery and distillation.

Each term is divided by the count of the whole batch, so that the shares of any partition of its
rows add up to the loss of all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config.run import LossConfig
from edje_jax.models.edje import Edje
from edje_jax.training.losses.binary_matching import binary_matching_loss
from edje_jax.training.losses.distillation import distillation_loss
from edje_jax.training.losses.hidden_states import hidden_states_loss
from edje_jax.training.losses.masked_lm import masked_lm_loss
from edje_jax.training.losses.matching import matching_loss
from edje_jax.training.losses.text_recovery import text_recovery_loss
from edje_jax.training.negatives import Negatives, Pairs
from edje_jax.training.queue import Queue
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics

Tree = TypeVar("Tree")

Phase = Literal["masked_lm", "all"]
"""Which losses a step trains: masked LM and text recovery alone, or all of them."""


class Taught(NamedTuple):
    """Teacher's outputs for some rows."""

    pairs: Pairs | None
    states: Float[Array, "r l t d"] | None
    """See `text_states`."""


class Rows(NamedTuple):
    """Inputs of the losses for some rows of a batch, apart from parameters and images."""

    index: Int[Array, " r"]
    """Indices of the rows in the batch."""
    ids: Int[Array, "r t"]
    masked: Bool[Array, "r t"]
    """Pieces that masked LM hides."""
    valid: Bool[Array, " r"]
    text_embeddings: Float[Array, "r e"]
    negatives: Negatives
    taught: Taught = Taught(None, None)
    similarities: Pairs | None = None
    """The backbone's cosines of the rows' pairs, where a model has a similarity prior."""


class Counts(NamedTuple):
    """Divisors of the means over a whole batch."""

    rows: Int[Array, ""]
    auxiliary_rows: Int[Array, ""]
    """Rows that text recovery takes."""
    pieces: Int[Array, ""]
    """Pieces that masked LM hides, of the same rows."""
    images: Int[Array, ""]
    captions: Int[Array, ""]

    @classmethod
    def of(cls, rows: Rows, auxiliary_stride: int = 1) -> "Counts":
        """Count a whole batch."""
        valid = rows.valid[:, None]
        some = every_nth(rows, auxiliary_stride)
        return cls(
            jnp.sum(rows.valid),
            jnp.sum(some.valid),
            jnp.sum(some.masked),
            jnp.sum(rows.negatives.images_usable & valid),
            jnp.sum(rows.negatives.captions_usable & valid),
        )


@dataclass(frozen=True)
class Objective:
    """Losses of a training phase and their weights, with the model and the devices."""

    model: Edje
    loss: LossConfig
    phase: Phase
    mask_id: int
    devices: Devices

    def share(
        self,
        params: PyTree,
        tokens: Float[Array, "b m d"],
        rows: Rows,
        ids: Int[Array, "b t"],
        counts: Counts,
        dropout: Array,
        queue: Queue | None = None,
    ) -> tuple[Float[Array, ""], Metrics]:
        """(loss, what to tell) of some rows; `tokens`, `ids` and `counts` are the whole batch's."""
        loss, terms, metrics = self.loss, {}, {}
        if self.phase == "all":
            pairs = match_pairs(self.model, params, tokens, rows, ids, self.devices, dropout, queue)
            if loss.match > 0:
                terms["match"] = match_term(pairs, rows, counts)
            if loss.binary_match > 0:
                terms["binary_match"] = binary_match_term(pairs, rows, counts)
            metrics["match_accuracy"] = accuracy(pairs, rows, counts)
            if rows.taught.pairs is not None:
                terms["distillation"] = distillation_term(pairs, rows.taught.pairs, rows, counts)
        own = own_tokens(tokens, rows, self.devices)
        if rows.taught.states is not None:
            last = rows.taught.states.shape[1]
            states = text_states(self.model, params, rows.ids, own, last)
            there = rows.valid[:, None] & (rows.ids != self.model.config.joint_encoder.pad_token_id)
            terms["hidden_states"] = hidden_states_loss(
                states, rows.taught.states, there, counts.rows
            )
        some, own = every_nth((rows, own), self.auxiliary_stride)
        if loss.masked_lm > 0:
            terms["masked_lm"] = self._masked_lm(params, own, some, counts, dropout)
        if loss.text_recovery > 0:
            guess = with_dropout(self.model, params, dropout).recover_text(some.ids, True)
            terms["text_recovery"] = text_recovery_loss(
                guess, some.text_embeddings, some.valid, counts.auxiliary_rows
            )
        total = sum((getattr(loss, name) * term for name, term in terms.items()), jnp.zeros(()))
        metrics |= {f"loss/{name}": term for name, term in terms.items()}
        return total, {"loss": total, **metrics}

    @property
    def auxiliary_stride(self) -> int:
        """Masked LM and text recovery take every so-many-th row."""
        return self.loss.auxiliary_stride if self.phase == "all" else 1

    def _masked_lm(self, params, tokens, rows: Rows, counts: Counts, dropout) -> Array:
        places = masked_places(
            rows.ids, rows.masked, self.loss.mask_probability, self.devices.count
        )
        hidden = jnp.where(rows.masked, self.mask_id, rows.ids)
        edje = with_dropout(self.model, params, dropout)
        logits = edje.masked_lm(hidden, tokens, places.positions, True)
        return masked_lm_loss(logits, places.labels, places.used, counts.pieces)


def every_nth(rows: Tree, stride: int) -> Tree:
    """Every so-many-th row, from the first. Rows of a chunk, and those of a device, are a multiple
    of the stride: all chunks together take what the whole batch would, and nothing is sent."""
    return rows if stride == 1 else jax.tree.map(lambda leaf: leaf[::stride], rows)


def match_pairs(
    model: Edje,
    params: PyTree,
    tokens: Float[Array, "b m d"],
    rows: Rows,
    ids: Int[Array, "b t"],
    devices: Devices,
    dropout: Array | None = None,
    queue: Queue | None = None,
) -> Pairs:
    """All 1 + 2K pairs of some rows in one pass; in training if there is a `dropout` key."""
    count, k = rows.negatives.images.shape
    own = jnp.repeat(rows.index, k)
    text_rows = jnp.concatenate([rows.index, own, rows.negatives.captions.reshape(-1)])
    image_rows = jnp.concatenate([rows.index, rows.negatives.images.reshape(-1), own])
    edje = partial(with_dropout, model, params, dropout)
    train, known = dropout is not None, None
    if model.config.similarity_prior and rows.similarities is not None:
        known = devices.split(jnp.concatenate([each.reshape(-1) for each in rows.similarities]))
    if queue is not None:
        tokens = jnp.concatenate([devices.gather(tokens), devices.gather(queue.tokens)])
        ids = jnp.concatenate([devices.gather(ids), devices.gather(queue.ids)[:, : ids.shape[1]]])
    tokens = devices.split(devices.gather(tokens)[image_rows])
    # Deferred layers read each caption once, unless there are more captions than pairs.
    if model.config.joint_encoder.deferred_layers and len(ids) <= len(text_rows):
        read = devices.gather(edje().read_text(ids, train))
        text = devices.split(jax.tree.map(lambda leaf: leaf[text_rows], read))
        logits = edje().match_read(text, tokens, train, known)
    else:
        text = devices.split(devices.gather(ids)[text_rows])
        logits = edje().match(text, tokens, train, known)
    positive, images, captions = jnp.split(devices.gather(logits), [count, count + count * k])
    return Pairs(positive, images.reshape(count, k), captions.reshape(count, k))


def with_dropout(model: Edje, params: PyTree, dropout: Array | None) -> Edje:
    """The model with its parameters, and the key that dropout draws from, if any. Bound anew for
    each call, as a module counts its draws."""
    return model.bind({"params": params}, rngs=None if dropout is None else {"dropout": dropout})


def own_tokens(
    tokens: Float[Array, "b m d"], rows: Rows, devices: Devices
) -> Float[Array, "r m d"]:
    """Compressed tokens of the rows' own images."""
    return tokens if len(rows.index) == len(tokens) else devices.split(tokens[rows.index])


def text_states(
    model: Edje, params: PyTree, ids: Int[Array, "r t"], tokens: Float[Array, "r m d"], last: int
) -> Float[Array, "r l t d"]:
    """Captions' rows beside their own pictures after each of the last so many layers."""
    states = model.bind({"params": params}).hidden_states(ids, tokens)[-last:]
    return jnp.stack([state[:, tokens.shape[1] + 1 :] for state in states], axis=1)


def match_term(pairs: Pairs, rows: Rows, counts: Counts) -> Float[Array, ""]:
    """The mean of matching against negative pictures and against negative captions."""
    positive, negatives = pairs.positive, rows.negatives
    losses = [
        matching_loss(positive, rivals, usable, rows.valid, counts.rows)
        for rivals, usable in (
            (pairs.images, negatives.images_usable),
            (pairs.captions, negatives.captions_usable),
        )
    ]
    return sum(losses, jnp.zeros(())) / 2


def binary_match_term(pairs: Pairs, rows: Rows, counts: Counts) -> Float[Array, ""]:
    """The mean over positives, negative images and negative captions."""
    masks, totals = pair_masks(rows, counts)
    losses = [
        binary_matching_loss(logits, kind == 0, mask, total)
        for kind, (logits, mask, total) in enumerate(zip(pairs, masks, totals, strict=True))
    ]
    return sum(losses, jnp.zeros(())) / 3


def pair_masks(rows: Rows, counts: Counts) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """(which positives, negative images and negative captions there are, how many of the batch)."""
    valid, negatives = rows.valid, rows.negatives
    masks = (
        valid,
        negatives.images_usable & valid[:, None],
        negatives.captions_usable & valid[:, None],
    )
    return masks, (counts.rows, counts.images, counts.captions)


def distillation_term(
    student: Pairs, teacher: Pairs, rows: Rows, counts: Counts
) -> Float[Array, ""]:
    """The mean over positives, negative images and negative captions."""
    masks, totals = pair_masks(rows, counts)
    losses = [
        distillation_loss(*each) for each in zip(student, teacher, masks, totals, strict=True)
    ]
    return sum(losses, jnp.zeros(())) / 3


def accuracy(pairs: Pairs, rows: Rows, counts: Counts) -> Float[Array, ""]:
    """Share of the rows whose own pair beats all its negatives."""
    rivals = jnp.concatenate(
        [
            jnp.where(rows.negatives.images_usable, pairs.images, -jnp.inf),
            jnp.where(rows.negatives.captions_usable, pairs.captions, -jnp.inf),
        ],
        axis=1,
    )
    won = (pairs.positive > jnp.max(rivals, axis=1)) & rows.valid
    return jnp.sum(won) / jnp.maximum(counts.rows, 1)


def choose_masked(
    ids: Int[Array, "b t"],
    valid: Bool[Array, " b"],
    probability: float,
    special_ids: Sequence[int],
    rng: Array,
) -> Bool[Array, "b t"]:
    """Which pieces are hidden: each with a probability, special ids and invalid rows never."""
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
    """Positions of the hidden pieces, and their ids.

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
