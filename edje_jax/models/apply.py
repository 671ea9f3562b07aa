"""Linen modules as pure functions of (params, arrays)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, PyTree


def apply(
    module: nn.Module,
    params: PyTree,
    method: str,
    *arguments: Any,
    dropout_rng: Array | None = None,
) -> Any:
    """Call a method of a module on plain parameters; no collection is ever changed."""
    rngs = None if dropout_rng is None else {"dropout": dropout_rng}
    return module.apply({"params": params}, *arguments, method=method, rngs=rngs)
