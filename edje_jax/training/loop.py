"""The training loop: the only place in training that does IO.

A task says what to train; the loop feeds it, logs, saves, resumes, and stops when asked to.
"""

import dataclasses
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.run import RunConfig
from edje_jax.config.saved_run import given, run_to_dict, with_one_temperature
from edje_jax.data.bad_records import BadRecords, left_out
from edje_jax.data.loader import iterate
from edje_jax.runtimes.devices import Compute, log_devices
from edje_jax.system.files import atomic_folder, atomic_path, write_json
from edje_jax.training.checkpoint import Checkpoints
from edje_jax.training.logs import Log, MetricLog, NullLog
from edje_jax.training.processes import any_of, is_first, wait_for_all
from edje_jax.training.state import Metrics, TrainState
from edje_jax.types import Source

log = logging.getLogger(__name__)


MAY_CHANGE = {
    "workdir", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints",
    "data.workers", "data.max_bad", "data.cache_features", "profile",
    "mesh", "mesh.data", "mesh.fsdp", "accumulate",
    "distributed", "coordinator", "num_processes", "process_id",
}  # fmt: skip
"""Fields of a run's config that may differ when it is resumed: no batch and, but for the order of
sums, no step depends on them."""


PROFILED = (10, 15)
"""Steps of a run, counted from where it starts or resumes, that --profile traces."""


BEST = "val/t2i/R@1"
"""Metric by which the evaluations of a run are compared."""


AGREE_EVERY = 10
"""Steps after which the processes of a run ask each other whether one was told to stop."""


@runtime_checkable
class Batches(Protocol):
    """Batches of a run, by number."""

    @property
    def source(self) -> Source:
        """The training set."""
        ...

    def __len__(self) -> int:
        """Steps of the run."""
        ...

    def __getitem__(self, index: int) -> tuple[Any, dict[str, str]]:
        """(batch of step `index`, {bad image: reason}); a function of the config and the index."""
        ...


@runtime_checkable
class Task(Protocol):
    """Interface of a training task to the loop."""

    @property
    def config(self) -> RunConfig:
        """The run's config."""
        ...

    @property
    def reader(self) -> Batches:
        """The run's batches."""
        ...

    @property
    def step_flops(self) -> float:
        """Multiplications and additions of the model in a step; 0 if unknown."""
        ...

    def init(self) -> TrainState:
        """The state before the first step; a pure function of the config and the seed."""
        ...

    def step(self, state: TrainState, batch: Any, number: int) -> tuple[TrainState, Metrics]:
        """Take step `number` (counted from 0). `state` is given up."""
        ...

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Figures on `data.val`; empty if there is none."""
        ...

    def fetch(self, state: TrainState) -> PyTree[np.ndarray]:
        """The parameters in host memory; every process takes part."""
        ...

    def export(self, params: PyTree[np.ndarray], folder: Path) -> None:
        """Write what users load into an existing empty folder; one process does."""
        ...


class NotFinite(RuntimeError):
    """The loss became NaN or infinite; the message says where the batch was kept."""


class OtherRun(ValueError):
    """The workdir belongs to a run with another config."""


def run(task: Task, workdir: Path) -> bool:
    """Train to the end, or until SIGINT or SIGTERM; True if the end was reached.

    Rerunning the same command resumes from the newest checkpoint, bit for bit on CPU.

    Raises:
        OtherRun: the workdir belongs to a run of other settings.
        NotFinite: the loss is not a number.
        TooManyBadRecords: more records of the set are bad than the run allows.
        CheckpointError: a checkpoint cannot be read or written.
    """
    claim_workdir(task.config, workdir)
    mesh = task.config.mesh
    devices = mesh.data * mesh.fsdp if mesh.data else jax.device_count()
    log_devices(Compute.of(task.config.precision), devices)
    best = BEST if task.config.data.val and task.config.eval_every else ""
    with Checkpoints(workdir / "checkpoints", task.config.keep_checkpoints, best) as checkpoints:
        state, start = task.init(), checkpoints.latest_step() or 0
        if start:
            state = checkpoints.restore(state)
            log.info("resumed from %s", checkpoints.folder / str(start))
        metric_log = (
            MetricLog(workdir, start, task.config, len(task.reader), task.step_flops)
            if is_first()
            else NullLog(workdir)
        )
        with stop_requests() as stopped, metric_log as metrics:
            state = _train(task, state, start, stopped, checkpoints, metrics)
            checkpoints.save(state)
            checkpoints.wait()
            finished = int(state.step) >= len(task.reader)
            if finished:
                _finish(task, state, workdir, metrics, checkpoints if best else None)
            else:
                log.info("stopped at step %d; run the same command to go on", int(state.step))
    return finished


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Make the workdir and write its config.json, or check that the one there is this run's.

    Raises:
        OtherRun: it is another's; the message lists what differs.
    """
    path, ours = workdir / "config.json", json.loads(json.dumps(run_to_dict(config)))
    if path.exists():
        defaults = json.loads(json.dumps(run_to_dict(type(config)())))
        theirs = _filled(with_one_temperature(json.loads(path.read_text())), defaults)
        changed = [
            f"  {name}: {old!r} there, {new!r} now"
            for name, (old, new) in differences(theirs, _filled(ours, defaults)).items()
            if name not in MAY_CHANGE
        ]
        if changed:
            raise OtherRun(
                f"{path}: this workdir belongs to a run with another config. Choose another"
                " --workdir, or delete this one:\n" + "\n".join(changed)
            )
    wait_for_all("claim")
    if is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)


def _train(
    task: Task,
    state: TrainState,
    start: int,
    stopped: "StopRequest",
    checkpoints: Checkpoints,
    metrics: Log,
) -> TrainState:
    config, steps = task.config, len(task.reader)
    # Each process counts its own, which is so much of the set.
    source, part, parts = task.reader.source, jax.process_index(), jax.process_count()
    bad = BadRecords.after(left_out(source)[part::parts], len(source) // parts, config.data.max_bad)
    previous: tuple[int, Any, Metrics] | None = None
    profile = Profile(workdir=metrics.workdir / "profile", first=start + PROFILED[0])
    batches = iterate(task.reader, start, bad, config.data.workers)
    for number, batch in enumerate(batches, start=start):
        if config.profile:
            profile.before(number, previous)
        state, values = task.step(state, batch, number)
        # The step before is looked at while this one runs, so that the device never waits.
        if previous:
            _check_and_log(*previous, metrics)
        previous = (number, batch, values)
        done = number + 1
        if done < steps and config.eval_every and done % config.eval_every == 0:
            _check_and_log(*previous, metrics)
            previous = None
            figures = task.evaluate(state)
            metrics.write(done, figures)
            checkpoints.save(state, figures or None)
        elif done < steps and done % config.checkpoint_every == 0:
            _check_and_log(*previous, metrics)
            previous = None
            checkpoints.save(state)
        # To agree takes a message to all and back, which the device would wait for.
        if (jax.process_count() == 1 or done % AGREE_EVERY == 0) and any_of(bool(stopped.by)):
            log.info("%s: saving step %d", stopped.by or "another process was stopped", done)
            break
    if config.profile:
        profile.end(previous)
    if previous:
        _check_and_log(*previous, metrics)
    return state


@dataclasses.dataclass
class Profile:
    """A trace of a few steps, once all is compiled and warm."""

    workdir: Path
    first: int
    tracing: bool = False
    written: bool = False

    def before(self, number: int, previous: Any) -> None:
        """Start or stop, as the step that is about to be taken asks for."""
        if number == self.first:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(str(self.workdir), create_perfetto_trace=True)
            self.tracing = True
        elif number == self.first + PROFILED[1] - PROFILED[0]:
            self.end(previous)

    def end(self, previous: Any) -> None:
        """Write what was traced, if anything was and it has not been written."""
        if self.tracing:
            jax.block_until_ready(previous)
            jax.profiler.stop_trace()
            self.tracing, self.written = False, True
            log.info("wrote a trace to %s", self.workdir)
        elif not self.written:
            log.warning("no trace: the run ended before its step %d", self.first)


def _check_and_log(number: int, batch: Any, values: Metrics, metrics: Log) -> None:
    loss = float(values["loss"])
    if not np.isfinite(loss):
        own = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = metrics.workdir / f"not-finite-step-{number}{own}.npz"
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree.leaves_with_path(batch)
        }
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **jax.device_get(arrays))
        raise NotFinite(
            f"{path}: the loss was {loss} at step {number}, whose batch is kept there. The last"
            " checkpoint is from before it; try a lower --optim.lr or --optim.clip-norm 1."
        )
    metrics.step(number, values)


def _finish(
    task: Task,
    state: TrainState,
    workdir: Path,
    metrics: Log,
    compared: Checkpoints | None,
) -> None:
    figures = task.evaluate(state)
    if figures:
        metrics.write(int(state.step), figures)
    if compared and BEST in figures:
        state = _best(state, figures[BEST], compared)
    # Every process helps to fetch what is exported; one writes.
    params = task.fetch(state)
    if is_first():
        with atomic_folder(workdir / "model") as folder:
            task.export(params, folder)
        log.info("wrote %s", workdir / "model")
    wait_for_all("export")


def _best(state: TrainState, last: float, checkpoints: Checkpoints) -> TrainState:
    """The last state, or an earlier one that evaluated better."""
    best = checkpoints.best()
    if best is None or best[1] <= last:
        return state
    log.info(
        "step %d was better (%s %.2f, %.2f at the end): its parameters are exported",
        best[0], BEST, best[1], last,
    )  # fmt: skip
    return checkpoints.restore(state, best[0])


@dataclasses.dataclass
class StopRequest:
    """Names the signal that asked the run to stop, once one has."""

    by: str = ""


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM ask for a stop after the step at hand; a second one is immediate."""
    request = StopRequest()
    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        request.by = signal.Signals(number).name
        signal.signal(number, before[number])

    try:
        for number in before:
            signal.signal(number, handle)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _filled(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A config as it was written, with today's defaults for fields that are newer than it."""
    out = defaults | config
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(out[name], dict):
            out[name] = _filled(out[name], value)
        else:
            out[name] = given(name, out[name], value)
    return out


def differences(theirs: Any, ours: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """{path of a setting, as "data.train": its two values} where two nested dicts differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        out: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*theirs, *ours}):
            path = f"{name}.{key}" if name else key
            out |= differences(theirs.get(key), ours.get(key), path)
        return out
    return {} if theirs == ours else {name: (theirs, ours)}
