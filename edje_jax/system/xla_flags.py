"""Flags that XLA needs to compute rightly and fast, set before its backend starts."""

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import jaxlib.version

FAULTY = "0.10.2"
"""The one jaxlib that compiles some fused reductions wrongly for CPUs (jax-ml/jax #39103): of
`vmap(lambda r: sum((m @ r) ** 2))` under jit, over 40,000 rows, it gets thousands wrong. Releases
0.10.0, 0.10.1, 0.11.0 to 0.11.2 and 0.12.0.1 get all of them right."""
_NAME = "xla_cpu_experimental_ynn_fusion_type"
FLAG = f"--{_NAME}=-reduce"
"""Flag that avoids the fault. Releases that do not know it end the process."""

_GPU_NAME = "xla_gpu_enable_triton_gemm"
GPU_FLAG = f"--{_GPU_NAME}=false"
"""Leaves products on GPUs to cuBLAS, which adds biases and residuals and applies tanh GELU in the
same kernel; XLA's own kernels of products keep them from it."""
_KNOW_GPU_FLAG = ((0, 10), (0, 13))
"""Releases of jaxlib that know `GPU_FLAG`: from the first number on, and before the second."""

log = logging.getLogger(__name__)


def avoid_wrong_reductions() -> None:
    """Add `FLAG` to XLA_FLAGS for the jaxlib that needs it; a value that is set already stands.

    XLA reads its flags when the backend starts, which is when JAX first asks for a device. Where
    that has happened, or where XLA_FLAGS names a file, one warning tells what to do.
    """
    if jaxlib.version.__version__ != FAULTY:
        return
    if _NAME in flags_in_force():
        return
    given = os.environ.get("XLA_FLAGS", "").strip()
    if _names_a_file(given):
        _warn(f"add {FLAG} to {given}")
    elif _computes_on_cpu():
        _warn(f"import edje_jax before JAX is first used, or set XLA_FLAGS={FLAG}")
    else:
        os.environ["XLA_FLAGS"] = f"{given} {FLAG}".lstrip()


def flags_in_force() -> str:
    """Flags in XLA_FLAGS, or in the file that it names; "" where that cannot be read."""
    given = os.environ.get("XLA_FLAGS", "").strip()
    return _read(given) if _names_a_file(given) else given


def leave_products_to_cublas() -> None:
    """Add `GPU_FLAG` to XLA_FLAGS where JAX has a plugin for NVIDIA GPUs; a value that is set
    already stands, and so does the name of a file.

    On an H100 and jaxlib 0.11.2 the scorer takes 1.3 times as many pairs a second with it
    (`benchmarks/throughput.py`). No other program was timed with and without it. It has
    no effect once JAX has started.
    """
    first, after = _KNOW_GPU_FLAG
    release = tuple(map(int, jaxlib.version.__version__.split(".")[:2]))
    given = os.environ.get("XLA_FLAGS", "").strip()
    plugin = any(find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    if not plugin or not first <= release < after or _GPU_NAME in given or _names_a_file(given):
        return
    os.environ["XLA_FLAGS"] = f"{given} {GPU_FLAG}".lstrip()


def _warn(remedy: str) -> None:
    log.warning(
        "jaxlib %s computes some reductions wrongly on CPU: %s; jax 0.11 and newer are right",
        FAULTY,
        remedy,
    )


def _names_a_file(given: str) -> bool:
    """Whether a value of XLA_FLAGS is a path, as XLA tells paths and flags apart."""
    return given != "" and not given.startswith("-")


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _computes_on_cpu() -> bool:
    """Whether JAX's backend runs already, and is the CPU's."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # There is no public way to ask
    return (
        bridge is not None
        and bridge.backends_are_initialized()
        and bridge.default_backend() == "cpu"
    )
