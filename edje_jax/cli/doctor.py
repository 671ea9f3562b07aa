"""`edje doctor`: versions, devices, extras, folders, and what is wrong with them."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from huggingface_hub.constants import HF_HUB_CACHE
from rich.console import Console
from rich.table import Table

from edje_jax.system.cache_folder import cache_base, can_be_written
from edje_jax.system.xla_flags import FAULTY, FLAG, flags_in_force

PACKAGES = (
    "edje-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers",
    "torch", "onnx", "onnxruntime",
)  # fmt: skip
DEVELOPMENT = ("test", "test-jax")
"""Extras that serve the project's tests alone."""
DRIVER = 580
"""Oldest NVIDIA driver for CUDA 13, which the extra `gpu` brings."""
MOVED_BY = {
    "cache": "XDG_CACHE_HOME",
    "compiled programs": "JAX_COMPILATION_CACHE_DIR",
    "hub models": "HF_HUB_CACHE",
}
"""{contents of a folder: variable that moves it}."""
START = """
import json, edje_jax, jax, jax.numpy as jnp
from edje_jax.runtimes.devices import compute_dtype
kinds = [device.device_kind for device in jax.devices()]
print(json.dumps([jax.default_backend(), kinds, jnp.dtype(compute_dtype("auto")).name]))
"""
"""Program that starts JAX, in a process of its own: a flag that XLA does not know ends it."""


class Backend(NamedTuple):
    """Backend that JAX starts here."""

    platform: str = ""
    devices: tuple[str, ...] = ()
    dtype: str = ""
    """Numbers that models compute in unless told otherwise."""
    failure: str = ""
    """Reason why JAX does not start; "" if it does."""


def doctor() -> bool:
    """Print what is here, and each known trouble with its remedy; whether there is none."""
    backend = start_jax()
    table = Table(show_header=False)
    newest = "" if sys.version_info >= (3, 12) else " (JAX newer than 0.10 needs 3.12)"
    table.add_row("python", f"{platform.python_version()}{newest}")
    for name in PACKAGES:
        table.add_row(name, installed(name) or "not installed")
    table.add_row("platform", backend.platform or "JAX does not start")
    kinds = Counter(backend.devices).items()
    table.add_row("devices", ", ".join(f"{count} x {kind}" for kind, count in kinds))
    table.add_row("computes in", backend.dtype)
    table.add_row("runtimes", ", ".join(runtimes()))
    for name, folder in folders().items():
        table.add_row(name, f"{folder} ({megabytes(folder):,.0f} MB)")
    for extra in extras():
        missing = missing_packages("edje-jax", extra)
        told = f"pip install 'edje-jax[{extra}]' ({missing[0]})" if missing else "installed"
        table.add_row(f"extra {extra}", told)
    console = Console()
    console.print(table, markup=False)
    for trouble in (found := list(troubles(backend))):
        console.print(f"trouble: {trouble}", markup=False, soft_wrap=True)
    if not found:
        console.print("no known trouble")
    return not found


def start_jax() -> Backend:
    """Start JAX in another process, which may end or hang without harm to this one."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", START], capture_output=True, text=True, timeout=300
        )
    except subprocess.TimeoutExpired:
        return Backend(failure="nothing happens for five minutes")
    if done.returncode == 0:
        backend, kinds, dtype = json.loads(done.stdout.splitlines()[-1])
        return Backend(backend, tuple(kinds), dtype)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    # Before that line come its time and the file of XLA that wrote it.
    unknown = (line.rpartition("] ")[2] for line in lines if "Unknown flag" in line)
    return Backend(failure=next(unknown, lines[-1]).strip())


def installed(package: str) -> str:
    """The version of a package; "" if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def runtimes() -> list[str]:
    """Runtimes that can score pairs here, by the names that `--runtime` takes."""
    return ["jax", *(["onnx"] if installed("onnx") and installed("onnxruntime") else [])]


def folders() -> dict[str, Path]:
    """{contents: folder} of what is kept between runs: compiled programs, copies of indexes behind
    URLs and their like, and models of the hub."""
    compiled, base = os.environ.get("JAX_COMPILATION_CACHE_DIR"), cache_base()
    return {
        **({"cache": base} if base else {}),
        **({"compiled programs": Path(compiled)} if compiled else {}),
        "hub models": Path(HF_HUB_CACHE),
    }


def megabytes(folder: Path) -> float:
    """Size of the files in a folder; 0 if it is not there."""
    files = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files) / 1e6


def extras() -> list[str]:
    """Extras of this package that users may install, in order of their names."""
    lines = (requires("edje-jax") if installed("edje-jax") else None) or ()
    found = {match[1] for line in lines if (match := _EXTRA.search(line))}
    return sorted(found - set(DEVELOPMENT))


def missing_packages(package: str, extra: str) -> list[str]:
    """Packages of an extra that are not installed, also of extras that it asks of others, as `gpu`
    does of JAX."""
    missing = []
    for line in requires(package) or ():
        asked, wanted = _REQUIREMENT.match(line), _EXTRA.search(line)
        if not asked or not wanted or wanted[1] != extra:
            continue
        name, inner = asked[1], re.findall(r"[\w-]+", asked[2] or "")
        if not installed(name):
            missing.append(name)
        else:
            missing += [one for each in inner for one in missing_packages(name, each)]
    return missing


_EXTRA = re.compile(r"extra == ['\"]([\w-]+)['\"]")
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[([^\]]*)\])?")


def troubles(backend: Backend) -> Iterator[str]:
    """Known faults of what is installed and set here, each with its remedy."""
    jax, library = installed("jax"), installed("jaxlib")
    if library.split(".")[:2] != jax.split(".")[:2]:
        yield (
            f"jax {jax} with jaxlib {library}: pip install --upgrade jax jaxlib, so that both are"
            " of one release"
        )
    if backend.failure:
        yield f"JAX does not start: {backend.failure}; {_how_to_start(backend.failure)}"
    if library == FAULTY and backend.platform == "cpu" and FLAG not in flags_in_force():
        yield (
            f"jaxlib {FAULTY} computes some reductions wrongly on CPU: add {FLAG} to XLA_FLAGS, or"
            " install jax 0.11 or newer, which needs Python 3.12"
        )
    yield from _gpu_troubles(backend)
    if cache_base() is None:
        yield "there is no home folder to keep caches in: set XDG_CACHE_HOME to a folder"
    for name, folder in folders().items():
        if not can_be_written(folder):
            variable = MOVED_BY[name]
            yield f"{name}: {folder} cannot be written: set {variable} to a folder that can be"


def _how_to_start(failure: str) -> str:
    """Remedy for what most likely keeps JAX from starting."""
    if "XLA_FLAGS" in failure:
        return "take the flag out of XLA_FLAGS"
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return f"JAX_PLATFORMS is {platforms}: unset it"
    return "pip install --upgrade jax jaxlib"


def _gpu_troubles(backend: Backend) -> Iterator[str]:
    """Faults of an NVIDIA GPU that JAX does not use, or uses with an old driver."""
    driver, plugin = nvidia_driver(), installed("jax-cuda13-plugin")
    old = bool(driver) and int(driver.split(".")[0]) < DRIVER
    if plugin and old:
        yield (
            f"NVIDIA driver {driver} is too old for CUDA 13: install driver {DRIVER} or newer, or"
            " pip uninstall jax-cuda13-plugin jax-cuda13-pjrt; pip install 'jax[cuda12]'"
        )
    elif driver and backend.platform == "cpu":
        install = "'jax[cuda12]'" if old else "'edje-jax[gpu]'"
        yield (
            f"there is an NVIDIA GPU with driver {driver}, and JAX computes on the CPU:"
            f" pip install {install}, and see that JAX_PLATFORMS is not set to cpu"
        )


def nvidia_driver() -> str:
    """Version of the NVIDIA driver, such as 580.65.06; "" where none answers."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    version = re.match(r"\d+(\.\d+)*", told)
    return version[0] if version else ""
