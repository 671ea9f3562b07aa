"""Gradients of `affine` against JAX's own, on CPUs and on other devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.models.affine import affine
from edje_jax.system.platform import programs_for


def draw(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    "shape, size", [((5, 7, 3), 8), ((5, 7, 8), 3), ((6, 4), 4), ((2, 3, 4, 5), 6), ((4,), 3)],
    ids=str,
)  # fmt: skip
def test_the_gradients_are_those_of_jax(shape, size):
    inputs = draw(0, *shape), draw(1, shape[-1], size), draw(2, size)
    weights = draw(3, *shape[:-1], size)

    def plain(x, kernel, bias):
        return x @ kernel + jnp.broadcast_to(bias, (*x.shape[:-1], size))

    def gradients(function):
        return jax.grad(lambda *at: jnp.sum(weights * function(*at)), (0, 1, 2))(*inputs)

    for function in (affine, jax.jit(affine), jax.checkpoint(affine)):
        np.testing.assert_allclose(function(*inputs), plain(*inputs), rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients(function), gradients(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradients_have_the_dtype_of_what_they_are_of():
    """In bfloat16 a sum over rows is as close as one number of that dtype can be."""
    inputs = [leaf.astype(jnp.bfloat16) for leaf in (draw(0, 300, 4), draw(1, 4, 5), draw(2, 5))]
    weights = draw(3, 300, 5)
    gradients = jax.grad(lambda *at: jnp.sum(weights * affine(*at)), (0, 1, 2))(*inputs)
    assert [one.dtype for one in gradients] == [jnp.bfloat16] * 3
    rounded = np.asarray(weights.astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(gradients[2].astype(jnp.float32), rounded.sum(0), rtol=0.01)


def test_a_batch_of_layers_has_a_batch_of_gradients():
    """`vmap` over kernels, as an ensemble has them."""
    x, kernels, biases = draw(0, 6, 4), draw(1, 3, 4, 5), draw(2, 3, 5)

    def of_kernel(kernel, bias):
        return jax.grad(lambda at: jnp.sum(affine(x, at, bias) ** 2))(kernel)

    together = jax.vmap(of_kernel)(kernels, biases)
    for kernel, bias, one in zip(kernels, biases, together, strict=True):
        np.testing.assert_allclose(one, of_kernel(kernel, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("platform, sums", [("cpu", 0), ("tpu", 1), ("gpu", 1)])
def test_other_devices_sum_rows_as_jax_does(platform, sums):
    """A product with ones is for CPUs: a TPU would round what it sums to bfloat16."""
    x, kernel, bias = draw(0, 6, 4), draw(1, 4, 5), draw(2, 5)
    with programs_for(platform):
        gradient = jax.make_jaxpr(jax.grad(lambda bias: jnp.sum(affine(x, kernel, bias) ** 2)))
        assert str(gradient(bias)).count("reduce_sum[axes=(0,)") == sums
