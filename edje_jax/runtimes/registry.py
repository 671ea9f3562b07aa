"""Runtimes by name."""

from edje_jax.config.model import InferencePrecision, RuntimeName
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.devices import Compute, log_devices
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.runtimes.onnx import OnnxRuntime
from edje_jax.runtimes.round_robin import default_devices
from edje_jax.weights.folder import Model

RUNTIMES = {"jax": JaxRuntime.of, "onnx": OnnxRuntime.of}
"""Functions that open a model, by the name that `--runtime` takes: (model, precision of scoring,
precision of encoding) -> runtime."""


def open_runtime(
    model: Model,
    precision: InferencePrecision = "auto",
    runtime: RuntimeName = "jax",
    encoder_precision: InferencePrecision | None = None,
) -> Runtime:
    """Runtime of a model that was loaded.

    Raises:
        ValueError: there is no such runtime or precision, or the runtime has not that one.
        ModuleNotFoundError: the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime {runtime!r}: give one of {', '.join(RUNTIMES)}")
    log_devices(Compute.of(precision), len(default_devices()))
    return RUNTIMES[runtime](model, precision, encoder_precision)
