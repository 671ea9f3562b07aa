"""Compute dtypes, and what they run on. Parameters are float32 everywhere and cast at use."""

import logging
from functools import cache
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from edje_jax.config.model import InferencePrecision
from edje_jax.system.platform import platform

log = logging.getLogger(__name__)


class Compute(NamedTuple):
    """Numbers that a part of a model computes in."""

    dtype: jax.typing.DTypeLike = jnp.float32
    """Activations, and all products that are not int8."""
    int8: bool = False
    """Whether the products of layers are int8 (`models.int8`)."""

    @classmethod
    def of(cls, precision: InferencePrecision) -> "Compute":
        """Products in int8 for "int8", with all else as "auto" has it.

        Raises:
            ValueError: there is no such precision.
        """
        int8 = precision == "int8"
        return cls(compute_dtype("auto" if int8 else precision), int8)

    def __str__(self) -> str:
        name = jnp.dtype(self.dtype).name
        return f"int8 and {name}" if self.int8 else name


def compute_dtype(precision: InferencePrecision) -> jax.typing.DTypeLike:
    """The dtype of activations; "auto" is bfloat16 on GPU and TPU, float32 on CPU.

    Raises:
        ValueError: there is no such precision, or it is one of products alone.
    """
    if precision == "int8":
        raise ValueError('precision "int8" is one of inference alone: give another one to train')
    if precision not in (known := get_args(InferencePrecision)):
        raise ValueError(f"precision {precision!r}: give one of {', '.join(known)}")
    if precision == "auto":
        return jnp.float32 if platform() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


@cache
def log_devices(compute: Compute, used: int) -> None:
    """Log the platform, how many devices are used and of which kind, and the compute dtype.

    Once a process, however often it is called with the same.
    """
    there = jax.device_count()
    log.info(
        "platform %s · %s %s (%s) · computing in %s",
        jax.default_backend(),
        used if used == there else f"{used} of {there}",
        "device" if there == 1 else "devices",
        ", ".join(dict.fromkeys(device.device_kind for device in jax.devices())),
        compute,
    )
