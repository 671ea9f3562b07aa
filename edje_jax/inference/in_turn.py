"""Batches of work for several devices of one process, which take them in turn.

The devices need not talk: each holds all parameters and computes whole batches. So a batch has one
of a few shapes however many devices there are, and its results are the same on each.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from edje_jax.data.buckets import bucket

AHEAD = 2
"""Batches handed to a device before the first one's results are waited for."""

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def default_devices() -> tuple[Any, ...]:
    """Every accelerator of this process; None is the only one, or the CPU, wherever data lie."""
    devices = tuple(jax.local_devices())
    return devices if len(devices) > 1 and jax.default_backend() != "cpu" else (None,)


def in_turn(
    batches: Iterable[Batch], start: Callable[[Batch, int], Result], devices: int
) -> Iterator[tuple[Batch, Result]]:
    """(batch, what `start(batch, device)` returned), in order; `AHEAD` a device are under way."""
    started: deque[tuple[Batch, Result]] = deque()
    for number, batch in enumerate(batches):
        started.append((batch, start(batch, number % devices)))
        if len(started) > AHEAD * devices:
            yield started.popleft()
    yield from started


def up_to_share(sizes: Sequence[int], count: int, devices: int) -> tuple[int, ...]:
    """Those of the batch sizes that leave no device idle while `count` rows are worked on."""
    share = -(-count // devices)
    return tuple(size for size in sizes if size <= bucket(min(share, max(sizes)), sorted(sizes)))
