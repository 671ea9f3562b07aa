"""Encoding of an index on a Ray cluster: Ray Data hands the numbers of shards to a pool of actors.

Each actor opens the model and the source once, and writes whole shards into the index's folder by
the code that `edje index build --shard i/n` runs; the process that asked plans the shards before
and completes the index afterwards. Ray moves nothing but shard numbers, so that its blocks, its
object store and its checkpoints play no part: what is done is what lies in the folder. Ray Data
replaces an actor whose process dies, however often, and its shard goes on after its last whole
part.

Ray Data brings the pool of actors: it starts them where there is room, hands each the next shard as
it becomes free, and repeats what was lost. Its actors are slower than its tasks where they are fed
with data; they are fed with numbers here, and a model that is loaded once needs actors.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.index.build import (
    BuildOptions,
    BuildProgress,
    Plan,
    begin,
    complete,
    encode_shards,
    images_done,
    join,
)
from edje_jax.index.commit import Report, record_of, refuse_many
from edje_jax.index.files import LocalFiles
from edje_jax.runtimes.base import Runtime
from edje_jax.system.files import read_json
from edje_jax.system.ray_cluster import Machines, first_cause, go_to
from edje_jax.types import Source

SHARDS_EACH = 4
"""Least shards for each actor, so that all of them are busy to the end."""
SECONDS = 2.0
"""Time between two looks at how far the shards are."""

Opened = tuple[Runtime, dict[str, Any], Source]
"""A model's runtime and stamp, and the images."""
Open = Callable[[], Opened]
"""Function that opens them in any process; it pickles."""


class ShardEncoder:
    """Actor that encodes shards of a build that was begun; called with a batch of their numbers."""

    def __init__(self, open_all: Open, out: Path, options: BuildOptions, folder: str):
        self._open, self._folder = open_all, folder
        self._out, self._options = out, options

    @cached_property
    def _opened(self) -> tuple[Runtime, Plan]:
        """Model and plan; opened with the first shard, as Ray hands on what a call raises, but not
        what a constructor does."""
        go_to(self._folder)
        runtime, stamp, source = self._open()
        return runtime, join(runtime, stamp, source, LocalFiles(self._out), self._options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        numbers = [int(number) for number in batch["shard"]]
        runtime, plan = self._opened
        encode_shards(runtime, plan, numbers, LocalFiles(self._out), self._options)
        return batch


def build_on_ray(
    ray: Any,
    machines: Machines,
    open_all: Open,
    spec: str,
    out: Path,
    options: BuildOptions,
    progress: BuildProgress | None = None,
) -> Report | None:
    """Bring an index up to a source as `build` does, on all machines of a cluster.

    `out`, and the files of the model and of the source, have to be on a disk that all of them see.

    Raises:
        BadStore, TooManyBadRecords: as for `build`.
    """
    out = Path(os.path.abspath(out))
    runtime, stamp, source = open_all()
    files = LocalFiles(out)
    plan = begin(runtime, stamp, source, spec, files, options, SHARDS_EACH * machines.count)
    left = [number for number in plan.shards if not (out / record_of(number)).exists()]
    if left:
        arguments = (open_all, out, replace(options, share=(0, 1)), os.getcwd())
        rejected = dict(plan.changes.bad)
        try:
            with _watched(out, plan, progress):
                for number in _encoded(ray, machines, arguments, left):
                    rejected |= read_json(out / record_of(number))["rejected"]
                    refuse_many(files, rejected, plan.changes, options.max_bad)
        except ray.exceptions.RayError as error:
            raise first_cause(error) from error
    return complete(runtime, plan, spec, files, options)


def _encoded(
    ray: Any, machines: Machines, arguments: tuple[Any, ...], numbers: list[int]
) -> Iterator[int]:
    """Numbers of shards as they are finished."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    shards = ray.data.from_items(
        [{"shard": number} for number in numbers], override_num_blocks=len(numbers)
    )
    done = shards.map_batches(
        ShardEncoder,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=min(machines.count, len(numbers)), max_tasks_in_flight_per_actor=1
        ),
        **machines.options,
    )
    return (int(row["shard"]) for row in done.iter_rows())


@contextmanager
def _watched(out: Path, plan: Plan, progress: BuildProgress | None) -> Iterator[None]:
    """Call `progress` now and then with what the shards' files say."""
    ended = threading.Event()
    total = sum(map(len, plan.shards.values()))

    def watch() -> None:
        finished: dict[int, int] = {}
        while progress and not ended.wait(SECONDS):
            done = {n: images_done(out, plan, n) for n in plan.shards if n not in finished}
            finished |= {n: images for n, images in done.items() if images == len(plan.shards[n])}
            progress(sum((done | finished).values()), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    if progress:
        progress(total, total)
