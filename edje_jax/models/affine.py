"""x @ kernel + bias, with a backward pass that CPUs are quick at."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from edje_jax.system.platform import platform

Gradients = tuple[Float[Array, "... d"], Float[Array, "d e"], Float[Array, " e"]]


def affine(
    x: Float[Array, "... d"], kernel: Float[Array, "d e"], bias: Float[Array, " e"]
) -> Float[Array, "... e"]:
    """x @ kernel + bias, all of one dtype. On CPUs it has no forward-mode derivative."""
    return _on_cpus(x, kernel, bias) if platform() == "cpu" else _plain(x, kernel, bias)


def _plain(
    x: Float[Array, "... d"], kernel: Float[Array, "d e"], bias: Float[Array, " e"]
) -> Float[Array, "... e"]:
    return x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))


_on_cpus = jax.custom_vjp(_plain)
"""`_plain`, differentiated by `_backward`."""


def _forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain(x, kernel, bias), (x, kernel)


def _backward(kept: tuple[Array, Array], gradient: Float[Array, "... e"]) -> Gradients:
    """Gradients of x, kernel and bias, up to rounding those of JAX's own rules.

    XLA copies the left factor of a product whose rows are summed over, so the narrower array goes
    there; and one product with ones is faster than its sum over rows, which is a chain of small
    reductions. Steps of small models take a fifth less time by it (docs/guide/speed.md).
    """
    x, kernel = kept
    rows, outer = (array.reshape(-1, array.shape[-1]) for array in (x, gradient))
    is_wider = rows.shape[1] > outer.shape[1]
    of_kernel = (outer.T @ rows).T if is_wider else rows.T @ outer
    of_bias = jnp.ones((1, len(outer)), outer.dtype) @ outer
    return gradient @ kernel.T, of_kernel, of_bias[0]


_on_cpus.defvjp(_forward, _backward)
