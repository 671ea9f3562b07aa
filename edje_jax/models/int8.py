"""Dense layers whose kernels may be int8: weights rounded once, inputs as they come.

A product of x and W is one of integers, accumulated in int32, between two scales:

    x W = (r q(x)) (q(W) c),    r = max|x| / 127 of each row, c = max|W| / 127 of each column

with q the nearest of the integers -127 to 127. Scales of inputs are computed at run time, so that
nothing has to be calibrated (LLM.int8, arXiv 2208.07339, section 2, names this vector-wise
quantisation). All else, biases, norms, activations and attention, stays what it is.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, PyTree

from edje_jax.models.affine import affine

LARGEST = 127
SCALE = "scale"
"""Parameter beside an int8 kernel: its columns' scales c, float32."""


class Dense(nn.Module):
    """x @ kernel + bias, as `nn.Dense`; an int8 kernel is met by int8 rows of x.

    The dtype of the kernel that it is given decides; `quantise_layers` makes int8 ones.
    """

    features: int
    dtype: jax.typing.DTypeLike
    kernel_init: jax.nn.initializers.Initializer = nn.linear.default_kernel_init

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... e"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if kernel.dtype == jnp.int8:
            scale = self.get_variable("params", SCALE)
            return (int8_product(x, kernel, scale) + _row(jnp.asarray(bias), x)).astype(self.dtype)
        x, kernel, bias = (jnp.asarray(leaf, self.dtype) for leaf in (x, kernel, bias))
        return affine(x, kernel, bias)


def int8_product(
    x: Float[Array, "... d"], kernel: Int8[Array, "d e"], scale: Float32[Array, " e"]
) -> Float32[Array, "... e"]:
    """x @ (kernel * scale), with x rounded to int8 row by row."""
    rows, row_scale = _rounded(x.astype(jnp.float32), axis=-1)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    whole = jax.lax.dot_general(rows, kernel, contract, preferred_element_type=jnp.int32)
    return whole.astype(jnp.float32) * row_scale * _row(scale, x)


def quantise_layers(params: PyTree) -> PyTree:
    """Parameters with the kernels of the layers ("layers_0", "layers_1", ...) in int8, each with
    its scales beside it; what stands outside of layers stays as it is."""
    return {
        name: _quantise(part) if name.startswith("layers_") else _inside(quantise_layers, part)
        for name, part in params.items()
    }


def _quantise(params: PyTree) -> PyTree:
    if "kernel" not in params:
        return {name: _inside(_quantise, part) for name, part in params.items()}
    kernel, scale = _rounded(params["kernel"], axis=-2)
    return {**params, "kernel": kernel, SCALE: jnp.squeeze(scale, axis=-2)}


def _inside(change: Any, part: PyTree) -> PyTree:
    return change(part) if isinstance(part, Mapping) else part


def _row(vector: Float[Array, " e"], x: Array) -> Array:
    """With as many axes as `x`."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _rounded(x: Float32[Array, "..."], axis: int) -> tuple[Int8[Array, "..."], Array]:
    """(integers, their scales): x = integers * scales, up to rounding."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    # Zeros stay zeros, whatever their scale.
    inverse = LARGEST / jnp.where(largest > 0, largest, 1.0)
    return jnp.round(x * inverse).astype(jnp.int8), largest / LARGEST
