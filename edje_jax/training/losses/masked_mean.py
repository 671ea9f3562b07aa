"""Masked mean, per batch or per part of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_mean(
    values: Float[Array, "..."], mask: Bool[Array, "..."], count: Int[Array, ""] | None = None
) -> Float[Array, ""]:
    """Mean over the True entries of a mask of the same shape; 0 if there are none.

    With `count`, that of a whole of which these values are a part, the part's share in its mean.
    """
    total = jnp.sum(mask) if count is None else count
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(total.astype(jnp.float32), 1.0)
