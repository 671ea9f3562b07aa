"""Logs of a run: metrics.jsonl, TensorBoard, and a progress line."""

import json
import logging
import os
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore (made by protoc)
from tensorboardX.summary import scalar

from edje_jax.config.run import RunConfig
from edje_jax.system.files import atomic_path, errors_name
from edje_jax.training.flops import peak_flops
from edje_jax.training.state import Metrics

log = logging.getLogger(__name__)


@runtime_checkable
class Log(Protocol):
    """Log of a run, open while it is entered."""

    workdir: Path

    def __enter__(self) -> "Log": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def step(self, number: int, values: Metrics) -> None:
        """Take note of step `number` (from 0), which is "step" number + 1 in the log."""
        ...

    def write(self, done: int, figures: dict[str, float]) -> None:
        """Write a line of figures after `done` steps."""
        ...


class MetricLog:
    """A line of `metrics.jsonl` and TensorBoard's scalars every `log_every` steps."""

    def __init__(
        self, workdir: Path, start: int, config: RunConfig, steps: int, step_flops: float = 0.0
    ):
        """`step_flops`: what a step multiplies and adds, for the utilisation of known devices."""
        self.workdir = workdir
        self._step_flops = step_flops
        self.config = config
        self.steps = steps
        self._path = workdir / "metrics.jsonl"
        self._last = (start, time.perf_counter())
        drop_after(self._path, start)
        self._file = self._path.open("ab", buffering=0)
        self._tensorboard = TensorBoardWriter(workdir, start)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not Console(stderr=True).is_terminal,
        )
        self._bar = self._progress.add_task("train", total=steps, completed=start, rate="")

    def __enter__(self) -> "MetricLog":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._progress.stop()
        # What the run failed of, a full disk maybe, keeps these from closing too.
        with suppress(*([OSError] if error else [])), errors_name(self.workdir):
            self._file.close()
            self._tensorboard.close()

    def step(self, number: int, values: Metrics) -> None:
        """Take note of step `number` (from 0), which is "step" number + 1 in the log."""
        done = number + 1
        self._progress.update(self._bar, completed=done)
        if done % self.config.log_every and done != self.steps:
            return
        since, then = self._last
        now = time.perf_counter()
        self._last = (done, now)
        rate = (done - since) * self.config.data.batch_size / max(now - then, 1e-9)
        figures = {name: float(value) for name, value in values.items()}
        mesh = self.config.mesh
        devices = mesh.data * mesh.fsdp if mesh.data else jax.device_count()
        speed = {
            "pairs_per_second": round(rate, 2),
            "steps_per_second": round(rate / self.config.data.batch_size, 3),
            "devices": devices,
        }
        if peak := peak_flops(jax.devices()[0].device_kind):
            achieved = self._step_flops * rate / self.config.data.batch_size
            speed["model_flop_utilisation"] = round(achieved / (peak * devices), 4)
        self.write(done, figures | speed)
        self._progress.update(self._bar, rate=f"loss {figures['loss']:.3f} · {rate:.0f} pairs/s")
        if self._progress.disable:
            left = (self.steps - done) * self.config.data.batch_size / rate
            log.info(
                "step %d/%d · loss %.4f · %.0f pairs/s · %d:%02d left",
                done, self.steps, figures["loss"], rate, left // 60, left % 60,
            )  # fmt: skip

    def write(self, done: int, figures: dict[str, float]) -> None:
        """Write a line of figures after `done` steps."""
        with errors_name(self._path):
            append(self._file, json.dumps({"step": done, **figures}) + "\n")
            self._tensorboard.write(done, figures)


class NullLog:
    """Log of processes that are not the first of a run: it writes nothing."""

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def __enter__(self) -> "NullLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        pass

    def step(self, number: int, values: Metrics) -> None:
        """Nothing."""

    def write(self, done: int, figures: dict[str, float]) -> None:
        """Nothing."""


class TensorBoardWriter:
    """TensorBoard's scalars, written by whoever calls.

    tensorboardX's own writer hands them to a thread, which dies in silence on a full disk.
    """

    def __init__(self, workdir: Path, start: int):
        """Steps past `start`, of a run that is resumed, are taken back."""
        self._events = EventsWriter(str(workdir / "events"))
        self._flushed = time.monotonic()
        log = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=start, session_log=log))

    def write(self, done: int, figures: dict[str, float]) -> None:
        """A point of each curve; on disk within half a minute."""
        for name, value in figures.items():
            # TensorBoard knows no "@" in names.
            summary = scalar(name.replace("@", "_"), value)
            point = Event(wall_time=time.time(), step=done, summary=summary)
            self._events.write_event(point)
        if time.monotonic() - self._flushed > 30:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        self._events.close()


def append(file: FileIO, line: str) -> None:
    """A whole line, or nothing of it where the disk is full."""
    end, left = file.seek(0, os.SEEK_END), line.encode()
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(end)
        raise


def drop_after(path: Path, start: int) -> None:
    """Drop the lines past a checkpoint that a run resumes from: they will be written again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            if json.loads(line)["step"] > start:
                break
        except ValueError:
            break  # The last line of a killed run may be cut short.
        kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), "utf-8")
