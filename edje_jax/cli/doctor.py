"""`edje doctor`: versions, devices, extras, and what is known to be wrong with them."""

import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from edje_jax.runtimes.devices import compute_dtype
from edje_jax.system.xla_flags import FAULTY, FLAG

PACKAGES = (
    "edje-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "torch",
    "onnx", "onnxruntime",
)  # fmt: skip
DEVELOPMENT = ("test", "test-jax", "gpu", "tpu")
"""Extras that are not listed: they show in the devices, or serve the project's tests."""


def doctor() -> None:
    """Print what is installed, where it computes, and each known trouble with its remedy."""
    table = Table(show_header=False)
    for name in PACKAGES:
        table.add_row(name, installed(name) or "not installed")
    table.add_row("platform", jax.default_backend())
    table.add_row("devices", ", ".join(device.device_kind for device in jax.devices()))
    table.add_row("computes in", jnp.dtype(compute_dtype("auto")).name)
    table.add_row("runtimes", ", ".join(runtimes()))
    for extra, missing in sorted(extras().items()):
        there = "installed" if not missing else f"pip install 'edje-jax[{extra}]' ({missing[0]})"
        table.add_row(f"extra {extra}", there)
    console = Console()
    console.print(table, markup=False)
    for trouble in (found := list(troubles())):
        console.print(f"trouble: {trouble}", markup=False, soft_wrap=True)
    if not found:
        console.print("no known trouble")


def installed(package: str) -> str:
    """The version of a package; "" if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def runtimes() -> list[str]:
    """Runtimes that can score pairs here, by the names that `--runtime` takes."""
    return ["jax", *(["onnx"] if installed("onnx") and installed("onnxruntime") else [])]


def extras() -> dict[str, list[str]]:
    """{extra of this package: the packages of it that are missing}."""
    out: dict[str, list[str]] = {}
    for line in (requires("edje-jax") if installed("edje-jax") else None) or ():
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name and extra and extra[1] not in DEVELOPMENT:
            missing = out.setdefault(extra[1], [])
            missing += [] if installed(name[0]) else [name[0]]
    return out


def troubles() -> Iterator[str]:
    """Known faults of the libraries that are installed here, each with its remedy."""
    library, on_cpu = installed("jaxlib"), jax.default_backend() == "cpu"
    if library.split(".")[:2] != installed("jax").split(".")[:2]:
        yield (
            f"jax {installed('jax')} with jaxlib {library}: pip install --upgrade jax jaxlib, so"
            " that both are of one release"
        )
    if library == FAULTY and on_cpu and FLAG not in os.environ.get("XLA_FLAGS", ""):
        yield (
            f"jaxlib {FAULTY} computes some reductions wrongly on CPU: add {FLAG} to XLA_FLAGS, or"
            " install jax 0.11 or newer (Python 3.12)"
        )
    if on_cpu and shutil.which("nvidia-smi"):
        yield (
            "there is an NVIDIA GPU, and JAX computes on the CPU: pip install 'edje-jax[gpu]'"
            " (driver 580 or newer), and see that JAX_PLATFORMS is not set to cpu"
        )
