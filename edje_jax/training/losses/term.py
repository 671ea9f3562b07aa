"""Terms of the loss of an EDJE or a captioner: the form of one, and what it is computed from.

A term is the file of its name in this folder, with a `TERM`, and a weight of that name in
`LossConfig`. A weight of 0 skips the term's work too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig, ModelKind
from edje_jax.config.run import LossConfig
from edje_jax.models.pair_scorer import PairScorer
from edje_jax.training.match_pairs import ScoredRows, match_pairs
from edje_jax.training.negatives import Pairs
from edje_jax.training.queue import Queue
from edje_jax.training.rows import Counts, Rows, every_nth
from edje_jax.training.sharding import Devices

Phase = Literal["masked_lm", "all"]
"""Terms that a step trains: those that come first alone (masked LM and text recovery, or
captioning), or all."""


@dataclass(frozen=True)
class Objective:
    """Model, weights of the losses and devices of a training phase."""

    model: PairScorer
    loss: LossConfig
    phase: Phase
    mask_id: int
    """Token that stands for a hidden one."""
    devices: Devices
    teacher: PairScorer | None = None
    calibration: Calibration | None = None
    """Calibration that makes match logits of a teacher's scores; None where they are match logits,
    as an EDJE's."""

    @property
    def reads_similarities(self) -> bool:
        """Whether a model, or the teacher's calibration, is given the backbone's cosine of a
        pair."""
        calibration = self.calibration if self.loss.distillation > 0 else None
        if calibration and calibration.similarity_weight:
            return True
        models = (self.model, self.teacher)
        return any(model is not None and model.config.similarity_prior for model in models)

    @property
    def auxiliary_stride(self) -> int:
        """Auxiliary terms take every so-many-th row."""
        return self.loss.auxiliary_stride if self.phase == "all" else 1


@dataclass(frozen=True)
class RowContext:
    """Some rows of a batch beside a model's parameters. Passes that several terms need run once."""

    objective: Objective
    model: PairScorer
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

    def bound(self) -> Any:
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
        devices, rows, tokens, ids = self.objective.devices, self.rows, self.tokens, self.ids
        if self.queue is not None:
            tokens = jnp.concatenate(
                [devices.replicate(tokens), devices.replicate(self.queue.tokens)]
            )
            queued = devices.replicate(self.queue.ids)[:, : ids.shape[1]]
            ids = jnp.concatenate([devices.replicate(ids), queued])
        scored = ScoredRows(rows.index, rows.negatives, rows.similarities)
        return match_pairs(self.bound, ids, tokens, scored, devices, self.training)

    def pair_masks(self) -> tuple[tuple[Bool[Array, "..."], Int[Array, ""]], ...]:
        """(which pairs exist, how many the whole batch has) of each field of `Pairs`."""
        own, images, captions = self.rows.negatives.usable_of(self.rows.valid)
        return (
            (own, self.counts.rows),
            (images, self.counts.images),
            (captions, self.counts.captions),
        )


class Term(NamedTuple):
    """A term of the loss."""

    loss: Callable[[RowContext], Float[Array, ""]]
    """The rows' share in the mean over the batch, unweighted."""
    flops: Callable[[EdjeConfig, LossConfig], float] = lambda config, loss: 0.0
    """Multiplications and additions of a row's forward pass, apart from those of `needs_pairs`."""
    needs_pairs: bool = False
    """Whether it reads `RowContext.pairs`."""
    comes_first: bool = False
    """Whether the first phase trains it too: it needs no negatives."""
    target: Callable[[RowContext], PyTree] | None = None
    """A teacher's outputs for some rows, which the term finds in `rows.targets` under its name; a
    term that has this is left out where there is no teacher."""
    is_binary: bool = False
    """Whether it reads a pair's score as the logit of the probability of a match."""
    kinds: tuple[ModelKind, ...] = ("edje", "captioner")
    """Kinds of models that it can train."""
    refuses: Callable[[EdjeConfig], str] = lambda config: ""
    """Reason why a model of a kind that it can train is none for it, and the remedy; else ""."""
    init_head: Callable[[EdjeConfig, Array], PyTree] | None = None
    """Parameters of a module that training alone has, from a random key: they stand beside the
    model's under the term's name, and are no part of what is exported."""
    reads_vision_tokens: bool = False
    """Whether it reads `Rows.vision_tokens`."""
    target_flops: Callable[[EdjeConfig, LossConfig], float] = lambda config, loss: 0.0
    """As `flops`, of the teacher for `target`; terms with one target have one count."""


def pairs_of_teacher(context: RowContext) -> Pairs:
    """A teacher's scores of all pairs of the rows: the target of terms that follow them."""
    return context.pairs
