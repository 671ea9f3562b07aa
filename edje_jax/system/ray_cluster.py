"""Connection to a Ray cluster, and the accelerators that it has."""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

QUIET = ("ray", "ray.data", "ray.serve")
"""Loggers that tell every step, whose errors reach whoever asked anyway."""


def connect(on: str) -> Any:
    """Module `ray`, connected to a cluster, if it was not yet.

    Args:
        on: "ray" is the cluster that RAY_ADDRESS names or that `ray start` has begun on this
            machine, or else one of this machine alone, which ends with this process;
            "ray://HOST:PORT" is the client port of a cluster, 10001 unless told otherwise.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: the cluster does not answer.
    """
    # Ray's C++ parts write to standard error by themselves.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
        import ray.serve
    except ImportError as error:
        raise ModuleNotFoundError(
            f"--on ray needs more ({error}): pip install 'edje-jax[ray]'"
        ) from error
    if not ray.is_initialized():
        address = on if "://" in on else None
        local: dict[str, Any] = {} if address else {"include_dashboard": False}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConnectionError(f"--on {on}: no Ray cluster answers there ({reason})") from error
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


@dataclass(frozen=True)
class Machines:
    """Machines of a cluster, as processes that compute are spread over them."""

    count: int
    """Processes: one for each GPU, for all chips of a TPU host, or for each machine without."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of Ray by which a process has its accelerator to itself."""


def machines(ray: Any) -> Machines:
    """Processes that a cluster has room for."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus := int(sum(node.get("GPU", 0) for node in alive)):
        return Machines(gpus, {"num_gpus": 1, "num_cpus": 1})
    if chips := [node["TPU"] for node in alive if node.get("TPU")]:
        return Machines(len(chips), {"resources": {"TPU": min(chips)}, "num_cpus": 1})
    # JAX uses all cores of a machine.
    computing = [node for node in alive if node.get("CPU")]
    return Machines(max(len(computing), 1), {"num_cpus": 1})


def go_to(folder: str) -> None:
    """Make relative paths mean in a process of a cluster what they mean where it was asked for, if
    that folder is here too."""
    with suppress(OSError):
        os.chdir(folder)


def first_cause(error: BaseException) -> BaseException:
    """Exception that made a task of Ray fail, without Ray's own around it."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
