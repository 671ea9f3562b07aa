"""Number of processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Cores that the system gives this process, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
