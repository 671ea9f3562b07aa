"""AdamW and its schedules."""

import jax.numpy as jnp
import optax

from edje_jax.config import OptimConfig


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
    """AdamW; as published, decay covers biases and norms too."""
    adamw = optax.adamw(
        schedule(optim, steps, steps_per_epoch),
        b1=optim.b1,
        b2=optim.b2,
        weight_decay=optim.weight_decay,
    )
    if optim.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(optim.clip_norm), adamw)
    return adamw
