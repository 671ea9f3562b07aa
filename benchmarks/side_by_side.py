"""Several ways to do the same work, timed in turns in one run."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax


def timed(
    sides: Mapping[str, Callable[[], Any]], rounds: int, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of every call; each side takes its turn in every round, so that what slows the
    machine for a while slows all. Sides are called once before, uncounted, unless they are `warm`.
    """
    for run in () if warm else sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: Mapping[str, list[float]], ours: str = "ours") -> dict[str, float]:
    """How many times as long as ours each takes, by medians."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: value / middle[ours] for name, value in middle.items()}


def machine() -> dict[str, Any]:
    """Devices, cores and libraries of the machine; PyTorch's where it is installed."""
    told = {
        "devices": sorted({str(device.device_kind) for device in jax.devices()}),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "jax": jax.__version__,
    }
    if find_spec("torch") is None:
        return told
    import torch

    return told | {"torch_threads": torch.get_num_threads(), "torch": torch.__version__}


def forget_peak() -> None:
    """Let `resident_peak` begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_peak() -> int:
    """Most bytes of memory that this process has held (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.machine()
