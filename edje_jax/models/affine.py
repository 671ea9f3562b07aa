"""x @ kernel + bias, with a backward pass that CPUs are quick at."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.system.platform import platform


def affine(
    x: Float[Array, "... d"], kernel: Float[Array, "d e"], bias: Float[Array, " e"]
) -> Float[Array, "... e"]:
    """x @ kernel + bias, all of one dtype."""
    return _on_cpus(x, kernel, bias) if platform() == "cpu" else _plain(x, kernel, bias)


def _plain(x: Array, kernel: Array, bias: Array) -> Array:
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


_on_cpus = jax.custom_vjp(_plain)
"""The same, differentiated by `_backward`."""


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, bias), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    """Gradients of x, kernel and bias: those of JAX's own rules, computed faster on CPUs.

    XLA's products transpose their left side in memory there, which is the narrower one here; and
    rows are summed by a product with ones, in place of a chain of small reductions.
    """
    x, kernel = kept
    rows, outer = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
    is_wider = rows.shape[1] > outer.shape[1]
    of_kernel = (outer.T @ rows).T if is_wider else rows.T @ outer
    of_bias = jnp.ones((1, len(outer)), outer.dtype) @ outer
    return gradient @ kernel.T, of_kernel, of_bias[0]


_on_cpus.defvjp(_forward, _backward)
