"""Compute dtypes. Parameters are float32 everywhere and cast at use."""

import jax
import jax.numpy as jnp

from edje_jax.config import Precision


def compute_dtype(precision: Precision) -> jax.typing.DTypeLike:
    """The dtype of activations; "auto" is bfloat16 on GPU and TPU, float32 on CPU."""
    if precision == "auto":
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)
