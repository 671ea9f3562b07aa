"""Processor cores that this process may use, and what they can do."""

import os
import re
from pathlib import Path


def usable_cores() -> int:
    """Cores that the system gives this process, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_vnni(described: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions that add products of uint8 and int8 up in int32; False
    where the system does not tell, as it does under Linux."""
    try:
        return bool(re.search(r"^flags\b.*_vnni\b", described.read_text(), re.MULTILINE))
    except OSError:
        return False
