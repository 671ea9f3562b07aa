"""The one place that chooses an implementation of attention.

| name | devices | masks | causal | dropout | gradient |
|---|---|---|---|---|---|
| `cudnn` | NVIDIA GPUs, in bfloat16 and float16 | of padding behind | yes | no | yes |
| `products` | all; on accelerators short sequences only | yes | yes | yes | yes |
| `flash` | TPU | yes | yes | no | by `blocks` |
| `blocks` | all | yes | yes | yes | computes the logits again |

`products` alone keeps the logits of all queries and keys, float32 [b, h, q, k], in memory.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from edje_jax.models.attention_kernels import cudnn, flash, refuse_cudnn, refuse_flash
from edje_jax.models.attention_plain import AttentionCall, blocks, products, refuse_products
from edje_jax.system.platform import platform


class Padding(NamedTuple):
    """Mask that hides each row's last keys and no others. This is not checked."""

    present: Bool[Array, "b k"]


class Implementation(NamedTuple):
    """A way to compute attention, and which calls it does not take."""

    compute: Callable[..., Array]
    refuse: Callable[[AttentionCall], str | None]
    """Reason why it cannot compute a call; None if it can."""


IMPLEMENTATIONS = {
    "cudnn": Implementation(cudnn, refuse_cudnn),
    "products": Implementation(products, refuse_products),
    "flash": Implementation(flash, refuse_flash),
    "blocks": Implementation(blocks, lambda call: None),
}
"""Implementations by name; the first that accepts a call computes it."""


def attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    mask: Bool[Array, "b k"] | Padding | None = None,
    dropout: float = 0.0,
    rng: Array | None = None,
    causal: bool = False,
    among: Sequence[str] = tuple(IMPLEMENTATIONS),
) -> Float[Array, "b q h d"]:
    """Scaled dot-product attention; logits and softmax in float32.

    `mask` is True for the keys that may be attended to, shared by all heads and queries.
    With `causal`, a query attends to the keys of its own and earlier positions. `dropout` drops
    attention probabilities, as BERT does in training, when an `rng` is given. `among` names the
    implementations that may be taken.

    Raises:
        ValueError: all of them refuse; the reason of each is told.
    """
    drops, padding = dropout > 0.0 and rng is not None, isinstance(mask, Padding)
    if isinstance(mask, Padding):
        mask = mask.present
    rows, queries, _, width = query.shape
    facts = (rows, queries, key.shape[1], width, jnp.dtype(query.dtype))
    call = AttentionCall(platform(), *facts, mask is not None, causal, drops, padding)
    refused = {}
    for name in among:
        refused[name] = IMPLEMENTATIONS[name].refuse(call)
        if refused[name] is None:
            compute = IMPLEMENTATIONS[name].compute
            return compute(query, key, value, mask, dropout, rng, causal)
    reasons = "; ".join(f"{name} {reason}" for name, reason in refused.items())
    raise ValueError(
        f"no attention for {queries} queries and {call.keys} keys in {call.dtype}: {reasons};"
        f" allow another of {', '.join(IMPLEMENTATIONS)}"
    )
