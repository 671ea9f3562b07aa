"""Batches of work for several devices of one process, which take them in turn.

The devices need not talk: each holds all parameters and computes whole batches. So a batch has one
of a few shapes however many devices there are, and its results are the same on each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

AHEAD = 1
"""Batches that wait on a device behind the one that it computes."""

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def default_devices() -> tuple[Any, ...]:
    """Every accelerator of this process; (None,), JAX's own choice, if that is one, or on a CPU,
    whose devices share its cores."""
    devices = tuple(jax.local_devices())
    return devices if len(devices) > 1 and jax.default_backend() != "cpu" else (None,)


def round_robin(
    batches: Iterable[Batch], start: Callable[[Batch, int], Result], devices: int
) -> Iterator[tuple[Batch, Result]]:
    """Yield (batch, result of `start(batch, device)`) in order; later batches are started before.

    Args:
        start: begins to compute a batch on the device of that number, and does not wait for it.
        devices: number of devices.
    """
    started: deque[tuple[Batch, Result]] = deque()
    for number, batch in enumerate(batches):
        started.append((batch, start(batch, number % devices)))
        if len(started) > AHEAD * devices:
            yield started.popleft()
    yield from started


def sizes_within_share(sizes: Sequence[int], count: int, devices: int) -> tuple[int, ...]:
    """Batch sizes of which no batch is more than one device's share of `count` rows, if any are so
    small: one batch more than its share is then the most that a device gets."""
    share = max(-(-count // devices), min(sizes))
    return tuple(size for size in sizes if devices == 1 or size <= share)
