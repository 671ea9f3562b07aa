"""AdamW, Muon, and their schedules."""

import logging
import re

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from edje_jax.config.run import OptimConfig

log = logging.getLogger(__name__)


def schedule(optim: OptimConfig, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Linear warm-up, then the published x`epoch_decay` per epoch, or a cosine to `floor`, which
    may set in later (`hold`)."""
    warmup = min(optim.warmup_steps, max(steps - 1, 0))

    def exponential(count):
        epoch = (count + warmup) // max(steps_per_epoch, 1)
        return jnp.maximum(optim.lr * optim.epoch_decay**epoch, optim.floor)

    held = round(optim.hold * steps)
    falling = optax.cosine_decay_schedule(
        optim.lr, max(steps - warmup - held, 1), alpha=optim.floor / optim.lr
    )
    cosine = optax.join_schedules([optax.constant_schedule(optim.lr), falling], [held])
    after = exponential if optim.schedule == "exponential" else cosine
    ramp = optax.linear_schedule(optim.warmup_from, optim.lr, max(warmup, 1))
    return optax.join_schedules([ramp, after], [warmup])


def optimiser(optim: OptimConfig, steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """AdamW or Muon; as published, decay covers biases and norms too. A cosine whose rate never
    falls is warned of.

    Raises:
        ValueError: there is no such optimiser.
    """
    rules = {"adamw": adamw, "muon": muon}
    if optim.kind not in rules:
        raise ValueError(f"--optim.kind {optim.kind!r}: give one of {', '.join(rules)}")
    warmup, held = optim.warmup_steps, round(optim.hold * steps)
    if optim.schedule == "cosine" and warmup + held >= steps - 1:
        log.warning(
            "the learning rate never falls: of %d steps, --optim.warmup-steps takes %d and"
            " --optim.hold %g another %d; lower one of them",
            steps, warmup, optim.hold, held,
        )  # fmt: skip
    rule = rules[optim.kind](optim, schedule(optim, steps, steps_per_epoch))
    parts: list[optax.GradientTransformation] = [rule]
    if optim.clip_norm > 0:
        parts.insert(0, optax.clip_by_global_norm(optim.clip_norm))
    if optim.lr_scales:
        parts.append(scale_by_path(optim.lr_scales))
    return optax.chain(*parts) if len(parts) > 1 else rule


def adamw(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW of every parameter."""
    return optax.adamw(rate, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay)


def muon(optim: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) of the kernels of dense layers, AdamW of the rest.

    Jordan leaves a network's first and last layers to AdamW too, and takes queries, keys and values
    apart; here patch embeddings and heads follow Muon, and so does an adapter's one kernel of all
    three. Updates are scaled to AdamW's usual size, 0.2 times the rate, as Liu et al. do (arXiv
    2502.16982, equation 4), so that one rate, and one weight decay, is for both.
    """
    of_matrices = optax.contrib.muon(
        rate, beta=0.95, weight_decay=optim.weight_decay, consistent_rms=0.2
    )
    return optax.partition({"muon": of_matrices, "adamw": adamw(optim, rate)}, _rules)


def _rules(params: PyTree) -> PyTree:
    """Name of the rule of each parameter."""

    def one(path: tuple, parameter: Array) -> str:
        is_matrix = parameter.ndim == 2 and _name(path).endswith("kernel")
        return "muon" if is_matrix else "adamw"

    return jax.tree.map_with_path(one, params)


def scale_by_path(scales: tuple[str, ...]) -> optax.GradientTransformation:
    """Multiply updates by the factor of the first REGEX=FACTOR that is found in their path.

    Raises:
        ValueError: one is written otherwise; or, once parameters are known, fits none of them.
    """
    table = []
    for scale in scales:
        pattern, equals, factor = scale.rpartition("=")
        try:
            table.append((re.compile(pattern), float(factor)))
        except (ValueError, re.error) as error:
            raise ValueError(
                f"--optim.lr-scales {scale!r}: write REGEX=FACTOR, such as adapter/=0.1 ({error})"
            ) from error
        if not equals:
            raise ValueError(f"--optim.lr-scales {scale!r}: write REGEX=FACTOR, as in adapter/=0.1")

    def factor_of(path: str) -> float:
        return next((factor for pattern, factor in table if pattern.search(path)), 1.0)

    def init(params: PyTree) -> optax.EmptyState:
        paths = [_name(path) for path, _ in jax.tree.leaves_with_path(params)]
        for pattern, factor in table:
            if not any(pattern.search(path) for path in paths):
                raise ValueError(
                    f"--optim.lr-scales {pattern.pattern}={factor:g}: no parameter has it in its"
                    f" path; they are called {paths[0]}, {paths[-1]} and so on"
                )
        return optax.EmptyState()

    def update(updates: PyTree, state: optax.OptState, params: PyTree = None):
        del params
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, update: update * factor_of(_name(path)), updates
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
