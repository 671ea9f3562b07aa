"""Parameters of a model on each device that computes, as its programs take them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from edje_jax.models.int8 import quantise_layers
from edje_jax.runtimes.devices import Compute


class Parts(NamedTuple):
    """Parameters of a model by part, float32."""

    edje: PyTree
    """`adapter`, and `joint_encoder` or `captioner`."""
    backbone: PyTree
    heads: PyTree | None


class DeviceParams:
    """A copy of the parameters for each device, made when it is first asked for.

    Kernels of layers are int8 in the copies of those parts that compute so, and those of other
    products have the dtype that they are cast to at use, so that no call casts them again. What is
    stored of images passes the deferred layers in float, whatever pairs are scored in.
    """

    def __init__(self, parts: Parts, devices: Sequence[Any], scoring: Compute, encoding: Compute):
        self._parts, self._devices = parts, devices
        self._scoring, self._encoding = scoring, encoding

    @cached_property
    def compressing(self) -> tuple[PyTree, ...]:
        """Adapter and deferred layers, for what is stored of images."""
        return self._on_each(self._parts.edje, self._encoding)

    @cached_property
    def scoring(self) -> tuple[PyTree, ...]:
        """Joint encoder or captioner, for captions and pairs."""
        if not self._scoring.int8 and self._scoring.dtype == self._encoding.dtype:
            return self.compressing
        params = {name: part for name, part in self._parts.edje.items() if name != "adapter"}
        if self._scoring.int8:
            params = _quantised(params)
        return self._on_each(params, self._scoring)

    @cached_property
    def backbone(self) -> tuple[PyTree, ...]:
        """Backbone, for images."""
        params = self._parts.backbone
        if self._encoding.int8:
            params = {**params, "vision": _quantised(params["vision"])}
        return self._on_each(params, self._encoding)

    @cached_property
    def heads(self) -> tuple[PyTree, ...]:
        """Heads of the first stage."""
        return self._on_each(self._parts.heads, Compute())

    def _on_each(self, params: PyTree, compute: Compute) -> tuple[PyTree, ...]:
        params = _with_cast_kernels(params, compute.dtype)
        return tuple(jax.device_put(params, device) for device in self._devices)


_quantised = jax.jit(quantise_layers)


def _with_cast_kernels(params: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """Float kernels of products, each with its bias, in a dtype; all else, of which norms are
    computed in float32 and tables are read row by row, stays as it is."""
    if not isinstance(params, Mapping):
        return params
    kernel = params.get("kernel")
    if kernel is None:
        return {name: _with_cast_kernels(part, dtype) for name, part in params.items()}
    if kernel.dtype != jnp.float32:
        return params
    cast = {name: jnp.asarray(params[name], dtype) for name in ("kernel", "bias") if name in params}
    return {**params, **cast}
