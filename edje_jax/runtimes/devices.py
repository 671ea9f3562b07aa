"""Compute dtypes, and what they run on. Parameters are float32 everywhere and cast at use."""

import logging
from functools import cache
from typing import get_args

import jax
import jax.numpy as jnp

from edje_jax.config.model import Precision
from edje_jax.system.platform import platform

log = logging.getLogger(__name__)


def compute_dtype(precision: Precision) -> jax.typing.DTypeLike:
    """The dtype of activations; "auto" is bfloat16 on GPU and TPU, float32 on CPU.

    Raises:
        ValueError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision {precision!r}: give one of {', '.join(get_args(Precision))}")
    if precision == "auto":
        return jnp.float32 if platform() == "cpu" else jnp.bfloat16
    return jnp.dtype(precision)


def log_devices(dtype: jax.typing.DTypeLike, used: int) -> None:
    """Log the platform, how many devices are used and of which kind, and the compute dtype.

    Once a process, however often it is called with the same.
    """
    _log_devices(jnp.dtype(dtype).name, used)


@cache
def _log_devices(dtype: str, used: int) -> None:
    there = jax.device_count()
    log.info(
        "platform %s · %s %s (%s) · computing in %s",
        jax.default_backend(),
        used if used == there else f"{used} of {there}",
        "device" if there == 1 else "devices",
        ", ".join(dict.fromkeys(device.device_kind for device in jax.devices())),
        dtype,
    )
