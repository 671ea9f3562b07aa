"""All terms of the loss of an EDJE or a captioner, and their weighted sum."""

from importlib import import_module

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.training import flops
from edje_jax.training.losses.listwise import lists_of, teacher_entropy
from edje_jax.training.losses.term import Phase, RowContext, Term, pairs_of_teacher
from edje_jax.training.state import Metrics

TERMS: dict[str, Term] = {
    name: import_module(f"edje_jax.training.losses.{name}").TERM for name in LossConfig.weights()
}
"""Terms by the name of their weight, in the order in which they are added up."""


def check_terms(loss: LossConfig, config: EdjeConfig, has_teacher: bool) -> None:
    """Refuse weights of terms that a model of this kind does not have.

    Raises:
        ValueError: there are some, or a captioner's score needs a term that has no weight, or
            cannot be what a term takes it for.
    """
    score = config.captioner.score if config.captioner else None
    for name, term in active_terms(loss, "all", has_teacher).items():
        asked = f"--loss.{name.replace('_', '-')} {getattr(loss, name):g}"
        if config.kind not in term.kinds:
            raise ValueError(
                f"{asked}: a model of the kind {config.kind} has no such loss; set it to"
                f" 0, or train another with --model.kind {' or '.join(term.kinds)}"
            )
        if reason := term.refuses(config):
            raise ValueError(f"{asked}: {reason}")
        if term.is_binary and score in ("sum", "mean"):
            raise ValueError(
                f"{asked}: takes scores for logits of a match, and log-probabilities are never"
                f" above 0; set --model.captioner.score to pmi instead of {score}, or the weight"
                " to 0"
            )
    if loss.captioning > 0 and score == "pmi" and not loss.unconditional_captioning > 0:
        raise ValueError(
            "--model.captioner.score pmi takes away what a caption scores without an image, which"
            " nothing teaches here; set --loss.unconditional-captioning above 0"
        )


def active_terms(loss: LossConfig, phase: Phase, has_teacher: bool) -> dict[str, Term]:
    """Terms that a step of this phase trains."""
    return {
        name: term
        for name, term in TERMS.items()
        if getattr(loss, name) > 0
        and (term.comes_first or phase == "all")
        and (has_teacher or term.target is None)
    }


def heads_of_terms(loss: LossConfig, config: EdjeConfig, key: Array) -> dict[str, PyTree]:
    """Fresh parameters of the modules that training alone has, by the name of their term."""
    return {
        name: term.init_head(config, jax.random.fold_in(key, number))
        for number, (name, term) in enumerate(TERMS.items())
        if getattr(loss, name) > 0 and term.init_head
    }


def without_heads(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Parameters of a training state that are the model's."""
    return {name: part for name, part in params.items() if name not in TERMS}


def loss_of_rows(context: RowContext) -> tuple[Float[Array, ""], Metrics]:
    """The rows' share in the loss of their batch, and the metrics to log.

    Every term is divided by the count of the whole batch, so that the shares of any partition of
    its rows add up to the loss of all of them.
    """
    objective, metrics = context.objective, {}
    terms = active_terms(objective.loss, objective.phase, objective.teacher is not None)
    if any(term.needs_pairs for term in terms.values()):
        metrics["match_accuracy"] = match_accuracy(context)
    if scored := [name for name, term in terms.items() if term.target is pairs_of_teacher]:
        metrics["teacher_entropy"] = entropy_of_teacher(context, scored[0])
    losses = {name: term.loss(context) for name, term in terms.items()}
    weighted = (getattr(objective.loss, name) * loss for name, loss in losses.items())
    total = sum(weighted, jnp.zeros(()))
    return total, {"loss": total, **metrics, **{f"loss/{n}": loss for n, loss in losses.items()}}


def match_accuracy(context: RowContext) -> Float[Array, ""]:
    """Share of the rows whose own pair scores above all their negatives."""
    pairs, rows = context.pairs, context.rows
    rivals = jnp.concatenate(
        [
            jnp.where(rows.negatives.images_usable, pairs.images, -jnp.inf),
            jnp.where(rows.negatives.captions_usable, pairs.captions, -jnp.inf),
        ],
        axis=1,
    )
    won = (pairs.positive > jnp.max(rivals, axis=1)) & rows.valid
    return jnp.sum(won) / jnp.maximum(context.counts.rows, 1)


def entropy_of_teacher(context: RowContext, term: str) -> Float[Array, ""]:
    """Entropy in nats of the softmax of the teacher's scores, which are the target of `term`, over
    each row's own pair and its negatives."""
    assert context.rows.targets is not None
    scores = lists_of(*context.rows.targets[term])
    usable = lists_of(*context.rows.negatives.usable_of(context.rows.valid))
    temperature = context.objective.loss.distillation_temperature
    return teacher_entropy(scores, usable, temperature, context.counts.lists)


def step_flops(
    config: EdjeConfig,
    loss: LossConfig,
    batch: int,
    teacher: EdjeConfig | None,
    cached: bool = False,
) -> float:
    """FLOPs of a step that trains every term, captions at their full length.

    Model FLOPs in the sense of PaLM's model FLOP utilisation (arXiv 2204.02311): a backward pass
    counts twice its forward pass, and what remat computes again does not count.

    Args:
        cached: whether the backbone's features are read from disk.
    """
    terms = active_terms(loss, "all", teacher is not None).values()
    trained = flops.stored(config) + sum(term.flops(config, loss) for term in terms)
    if any(term.needs_pairs for term in terms):
        trained += flops.matching(config, loss)
    followed = [term for term in terms if term.target]
    taught = 0.0
    if teacher is not None and followed:
        taught = flops.stored(teacher)
        passes = {term.target: term.target_flops(teacher, loss) for term in followed}
        taught += sum(passes.values())
    seen = 0.0 if cached else flops.backbone(config)
    return batch * (seen + 3 * trained + taught)
