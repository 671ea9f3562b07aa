"""Option --on: the cluster that computes instead of this process."""

from typing import Any

import jax

from edje_jax.cli.program import UsageError
from edje_jax.system.ray_cluster import connect


def connect_to(on: str) -> Any:
    """Module `ray`, connected to the cluster that --on names.

    The process that asks computes next to nothing and leaves this machine's accelerators to the
    cluster's processes.

    Raises:
        UsageError: it names no Ray cluster, or Ray is not installed.
        ConnectionError: the cluster does not answer.
    """
    if on != "ray" and not on.startswith("ray://"):
        raise UsageError(f"--on {on}: give ray, or ray://HOST:PORT")
    jax.config.update("jax_platforms", "cpu")
    try:
        return connect(on)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error
