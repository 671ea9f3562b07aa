"""Time that each kernel of a device takes, by JAX's profiler: a part of `throughput.py`."""

import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


def kernel_milliseconds(run: Callable[[], Any], calls: int = 5) -> dict[str, float]:
    """{kernel: milliseconds of a call}, longest first; on a GPU those of its streams alone.

    Kernels whose names differ in numbers alone count as one, with # for each number.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(calls):
                jax.block_until_ready(run())
        profile = next(Path(folder).rglob("*.xplane.pb"))
        planes = list(jax.profiler.ProfileData.from_file(str(profile)).planes)
    on_gpu = any("GPU" in plane.name for plane in planes)
    total: Counter[str] = Counter()
    for plane in planes:
        if ("GPU" if on_gpu else "CPU") not in plane.name:
            continue
        for line in plane.lines:
            if on_gpu and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                if event.name.startswith("$"):  # A line of Python
                    continue
                total[re.sub(r"\d+", "#", event.name)] += event.duration_ns
    return {name: nanoseconds / 1e6 / calls for name, nanoseconds in total.most_common()}
