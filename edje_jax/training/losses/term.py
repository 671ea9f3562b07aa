"""Terms of an EDJE's loss: the form of one, and what it is computed from.

A term is the file of its name in this folder, with a `TERM`, and a weight of that name in
`LossConfig`. A weight of 0 skips the term's work too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.models.edje import Edje
from edje_jax.training.negatives import Pairs
from edje_jax.training.queue import Queue
from edje_jax.training.rows import Counts, Rows, every_nth
from edje_jax.training.sharding import Devices

Phase = Literal["masked_lm", "all"]
"""Terms that a step trains: the auxiliary ones alone (masked LM and text recovery), or all."""


@dataclass(frozen=True)
class Objective:
    """Model, weights of the losses and devices of a training phase."""

    model: Edje
    loss: LossConfig
    phase: Phase
    mask_id: int
    """Token that stands for a hidden one."""
    devices: Devices
    teacher: Edje | None = None

    @property
    def auxiliary_stride(self) -> int:
        """Auxiliary terms take every so-many-th row."""
        return self.loss.auxiliary_stride if self.phase == "all" else 1


@dataclass(frozen=True)
class RowContext:
    """Some rows of a batch beside a model's parameters. Passes that several terms need run once."""

    objective: Objective
    model: Edje
    """The model that is trained, or its teacher."""
    params: PyTree
    tokens: Float[Array, "b m d"]
    """Compressed tokens of the whole batch, by `model`."""
    ids: Int[Array, "b t"]
    """Captions of the whole batch, in the joint encoder's tokens."""
    rows: Rows
    counts: Counts
    """Divisors of the whole batch, so that the terms of its parts add up to that of all rows."""
    dropout: Array | None = None
    """Key of dropout; None for a pass that does not train."""
    queue: Queue | None = None

    @property
    def training(self) -> bool:
        """Whether dropout is drawn."""
        return self.dropout is not None

    def bound(self) -> Edje:
        """The model with its parameters; anew for each call, as a module counts its draws."""
        rngs = None if self.dropout is None else {"dropout": self.dropout}
        return self.model.bind({"params": self.params}, rngs=rngs)

    @cached_property
    def own_tokens(self) -> Float[Array, "r m d"]:
        """Compressed tokens of the rows' own images."""
        index = self.rows.index
        if len(index) == len(self.tokens):
            return self.tokens
        return self.objective.devices.shard_rows(self.tokens[index])

    @cached_property
    def auxiliary(self) -> tuple[Rows, Float[Array, "a m d"]]:
        """Rows that the auxiliary terms take, and the compressed tokens of their images."""
        return every_nth((self.rows, self.own_tokens), self.objective.auxiliary_stride)

    @cached_property
    def pairs(self) -> Pairs:
        """Match logits of all 1 + 2K pairs of the rows, in one pass."""
        count, k = self.rows.negatives.images.shape
        logits = self.objective.devices.replicate(self._match_logits())
        positive, images, captions = jnp.split(logits, [count, count + count * k])
        return Pairs(positive, images.reshape(count, k), captions.reshape(count, k))

    def _match_logits(self) -> Float[Array, " p"]:
        devices, rows, config = self.objective.devices, self.rows, self.model.config
        own = jnp.repeat(rows.index, rows.negatives.images.shape[1])
        text_rows = jnp.concatenate([rows.index, own, rows.negatives.captions.reshape(-1)])
        image_rows = jnp.concatenate([rows.index, rows.negatives.images.reshape(-1), own])
        similarities, tokens, ids = None, self.tokens, self.ids
        if config.similarity_prior and rows.similarities is not None:
            similarities = jnp.concatenate([each.reshape(-1) for each in rows.similarities])
            similarities = devices.shard_rows(similarities)
        if self.queue is not None:
            tokens = jnp.concatenate(
                [devices.replicate(tokens), devices.replicate(self.queue.tokens)]
            )
            queued = devices.replicate(self.queue.ids)[:, : ids.shape[1]]
            ids = jnp.concatenate([devices.replicate(ids), queued])
        tokens = devices.shard_rows(devices.replicate(tokens)[image_rows])
        # Deferred layers read each caption once, unless there are more captions than pairs.
        if config.joint_encoder.deferred_layers and len(ids) <= len(text_rows):
            read = devices.replicate(self.bound().encode_text(ids, self.training))
            text = devices.shard_rows(jax.tree.map(lambda leaf: leaf[text_rows], read))
            return self.bound().match_encoded(text, tokens, self.training, similarities)
        text = devices.shard_rows(devices.replicate(ids)[text_rows])
        return self.bound().match(text, tokens, self.training, similarities)

    def pair_masks(self) -> tuple[tuple[Bool[Array, "..."], Int[Array, ""]], ...]:
        """(which pairs exist, how many the whole batch has) of each field of `Pairs`."""
        valid, negatives = self.rows.valid, self.rows.negatives
        return (
            (valid, self.counts.rows),
            (negatives.images_usable & valid[:, None], self.counts.images),
            (negatives.captions_usable & valid[:, None], self.counts.captions),
        )


class Term(NamedTuple):
    """A term of the loss."""

    loss: Callable[[RowContext], Float[Array, ""]]
    """The rows' share in the mean over the batch, unweighted."""
    flops: Callable[[EdjeConfig, LossConfig], float] = lambda config, loss: 0.0
    """Multiplications and additions of a row's forward pass, apart from those of `needs_pairs`."""
    needs_pairs: bool = False
    """Whether it reads `RowContext.pairs`."""
    auxiliary: bool = False
    """Whether it needs no negatives: it is trained in the first phase too, and takes every
    `auxiliary_stride`-th row."""
    target: Callable[[RowContext], PyTree] | None = None
    """A teacher's outputs for some rows, which the term finds in `rows.targets` under its name; a
    term that has this is left out where there is no teacher."""
    target_flops: Callable[[EdjeConfig, LossConfig], float] = lambda config, loss: 0.0
    """As `flops`, of the teacher for `target`."""
