"""Several processes in one run: joining them, and agreeing."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from edje_jax.config.run import RunConfig

log = logging.getLogger(__name__)

LOST_AFTER = 30
"""Seconds without a sign of life after which a process counts as dead and the others end."""

PATIENCE = 7 * 24 * 3600 * 1000
"""Milliseconds that processes wait for the first one's work; if it dies they learn of it anyway."""


class NoCluster(RuntimeError):
    """The processes of a run could not find each other; the message says what to set."""


def join(config: RunConfig) -> None:
    """Make this process one of many if the config asks for it; to be called before any JAX work.

    Raises:
        NoCluster: nothing says who the others are, or they cannot be reached.
    """
    named = (config.coordinator, config.num_processes, config.process_id)
    if config.distributed == "off":
        if any(setting is not None for setting in named):
            raise NoCluster(
                "--coordinator, --num-processes and --process-id need --distributed auto"
            )
        return
    # Collectives between CPU processes; accelerators have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself; when to stop is the loop's to say.
    jax.config.update("jax_enable_preemption_service", False)
    given = {
        "coordinator_address": config.coordinator,
        "num_processes": config.num_processes,
        "process_id": config.process_id,
    }
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=LOST_AFTER)
    except (ValueError, RuntimeError) as error:
        raise NoCluster(
            f"--distributed auto: the processes of this run did not find each other ({error})."
            " Start it under Slurm, Open MPI or on a TPU pod, or give every process"
            " --coordinator HOST:PORT, --num-processes N and its own --process-id"
        ) from error
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)
    log.info("%d processes, %d devices", jax.process_count(), jax.device_count())


def part_of_this_process() -> tuple[int, int]:
    """(i, n): this is the i-th of n processes."""
    return jax.process_index(), jax.process_count()


def is_first() -> bool:
    """Whether this is the main process, which writes and logs."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Block until every process has come this far, and its devices too."""
    if jax.process_count() > 1:
        # Between CPUs a collective that one process reaches 30 seconds late is an error.
        multihost.get_barrier_sync_fn()(key=what, timeout_ms=PATIENCE)
        multihost_utils.sync_global_devices(what)


@contextmanager
def main_process_first(what: str) -> Iterator[None]:
    """A block that the first process runs before the others, however long it takes; all leave it
    together. What it keeps on disk they find there."""
    wait = partial(multihost.get_barrier_sync_fn(), timeout_ms=PATIENCE)
    if not is_first():
        wait(key=what)
    yield
    if is_first():
        wait(key=what)
    wait(key=f"{what}, all")


def any_of(flag: bool) -> bool:
    """Whether any process says so; every process has to ask at the same time."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def said_by_first(value: float) -> float:
    """A number as the first process has it, in float32; every process has to ask at once."""
    if jax.process_count() == 1:
        return float(np.float32(value))
    return float(multihost_utils.broadcast_one_to_all(np.float32(value)))


@contextmanager
def process_group(config: RunConfig) -> Iterator[None]:
    """A block that is one process's part of a run.

    If it fails, the process ends on the spot: the usual way out would wait for the others, which
    may be gone, and they learn of it the sooner.

    Raises:
        NoCluster: see `join`.
    """
    join(config)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        told = str(error) or type(error).__name__
        sys.stderr.write(f"error: process {jax.process_index()}: {told}\n")
        sys.stderr.flush()
        os._exit(1)
