"""The loop on the smallest real task: what it keeps, refuses, resumes and leaves behind.

Covers training/checkpoint.py and training/logs.py.
"""

import dataclasses
import errno
import io
import json
import os
import re
import shutil
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from edje_jax.config.run import DataConfig, EdjeRun, ModelSpec, OptimConfig, RunConfig
from edje_jax.config.saved_run import read_run, run_to_dict
from edje_jax.training.checkpoint import CheckpointError
from edje_jax.training.logs import append, drop_after
from edje_jax.training.loop import NotFinite, OtherRun, claim_workdir, run, stop_requests
from tests.small_disk import fill
from tests.small_runs import read_log
from tests.training.chase import Chase, ChaseRun

CONFIG = ChaseRun(
    steps=10, data=DataConfig(batch_size=4), log_every=1, checkpoint_every=3, keep_checkpoints=2
)


def saved(workdir: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def as_json(config: RunConfig) -> dict:
    """With lists for tuples."""
    return json.loads(json.dumps(run_to_dict(config)))


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(workdir)]


def number(workdir: Path) -> bytes:
    return (workdir / "model" / "number.npy").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The workdir of a run without incidents."""
    workdir = tmp_path_factory.mktemp("straight")
    assert run(Chase(CONFIG), workdir)
    return workdir


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(straight):
    assert json.loads((straight / "config.json").read_text()) == as_json(CONFIG)
    assert saved(straight) == [9, 10]
    assert [step for step, _ in losses(straight)] == list(range(1, 11))
    assert losses(straight)[-1][1] < losses(straight)[0][1]
    for line in read_log(straight):
        assert line["devices"] == 8 and line["pairs_per_second"] > 0
    assert sorted(p.name for p in (straight / "model").iterdir()) == ["ballast.npy", "number.npy"]
    assert not list(straight.glob(".*"))


def test_tensorboard_gets_the_same_figures(straight):
    (path,) = straight.glob("events.out.tfevents.*")
    content, at, points = path.read_bytes(), 0, []
    while at < len(content):
        (length,) = struct.unpack_from("Q", content, at)
        event = Event.FromString(content[at + 12 : at + 12 + length])
        points += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        at += length + 16
    assert [(step, value) for step, tag, value in points if tag == "loss"] == losses(straight)
    assert {tag for _, tag, _ in points} == {
        "loss", "pairs_per_second", "steps_per_second", "devices"
    }  # fmt: skip


def test_only_every_nth_step_is_logged_and_the_last(tmp_path):
    run(Chase(dataclasses.replace(CONFIG, log_every=4)), tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [4, 8, 10]


def test_running_a_finished_run_again_trains_no_more(straight, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "model")

    class Idle(Chase):
        def step(self, *_):
            raise AssertionError("a finished run takes no step")

    assert run(Idle(CONFIG), workdir)
    assert number(workdir) == number(straight)
    assert losses(workdir) == losses(straight)


# --- stopping and going on ------------------------------------------------------------------------


class Interrupted(Chase):
    """Gets a signal during step `at`."""

    def __init__(self, config: ChaseRun, at: int, by: signal.Signals):
        super().__init__(config)
        self.at, self.by = at, by

    def step(self, state, batch, number):
        if number == self.at:
            os.kill(os.getpid(), self.by)
        return super().step(state, batch, number)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [0, 4, 5])
def test_a_signal_saves_and_the_same_command_goes_on(by, at, straight, tmp_path, caplog):
    caplog.set_level("INFO")
    assert not run(Interrupted(CONFIG, at, by), tmp_path)
    assert saved(tmp_path)[-1] == at + 1
    assert losses(tmp_path) == losses(straight)[: at + 1]
    assert not (tmp_path / "model").exists()
    assert f"{by.name}: saving step {at + 1}" in caplog.text
    assert "run the same command to go on" in caplog.text
    assert run(Chase(CONFIG), tmp_path)
    assert f"resumed from {tmp_path / 'checkpoints' / str(at + 1)}" in caplog.text
    assert losses(tmp_path) == losses(straight)
    assert number(tmp_path) == number(straight)


def test_a_crash_goes_on_from_the_last_checkpoint(straight, tmp_path):
    class Crash(Chase):
        def step(self, state, batch, number):
            if number == 8:
                raise RuntimeError("the device fell off the bus")
            return super().step(state, batch, number)

    with pytest.raises(RuntimeError, match="fell off"):
        run(Crash(CONFIG), tmp_path)
    assert saved(tmp_path) == [3, 6]
    assert run(Chase(CONFIG), tmp_path)
    assert losses(tmp_path) == losses(straight)
    assert number(tmp_path) == number(straight)


def test_the_first_signal_asks_and_the_second_one_acts(request):
    # A shell that starts tests in the background lets them ignore SIGINT.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stop_requests() as stopped:
        assert stopped.by == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.by == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# --- a loss that is no number ---------------------------------------------------------------------


@pytest.mark.parametrize(("nan_at", "whole"), [(0, []), (4, [3]), (5, [3]), (9, [6, 9])])
def test_a_nan_stops_the_run_and_keeps_the_batch(nan_at, whole, tmp_path):
    """Also at the steps before a checkpoint (5) and before the end (9)."""
    task = Chase(CONFIG, nan_at=nan_at)
    with pytest.raises(NotFinite) as caught:
        run(task, tmp_path)
    path = tmp_path / f"not-finite-step-{nan_at}.npz"
    assert str(caught.value).startswith(f"{path}: the loss was nan at step {nan_at}")
    assert "--optim.lr" in str(caught.value)
    batch, _ = task.reader[nan_at]
    with np.load(path, allow_pickle=False) as kept:
        assert set(kept) == {name for name, leaf in batch._asdict().items() if leaf is not None}
        for name in kept:
            np.testing.assert_array_equal(kept[name], getattr(batch, name))
    assert saved(tmp_path) == whole
    assert [step for step, _ in losses(tmp_path)] == list(range(1, nan_at + 1))
    assert not (tmp_path / "model").exists()


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_best_checkpoint_stays_beside_the_last_ones(tmp_path):
    config = dataclasses.replace(
        CONFIG, data=DataConfig(batch_size=4, val="shapes:val"), eval_every=2, checkpoint_every=3
    )
    scores = (10.0, 60.0, 30.0, 20.0, 25.0)
    run(Chase(config, figures=tuple({"val/t2i/R@1": s} for s in scores)), tmp_path)
    assert saved(tmp_path) == [4, 9, 10]
    told = {line["step"]: line["val/t2i/R@1"] for line in read_log(tmp_path) if len(line) == 2}
    assert told == {2: 10.0, 4: 60.0, 6: 30.0, 8: 20.0, 10: 25.0}


@pytest.mark.parametrize("last, exported", [(25.0, 4), (60.0, 10)])
def test_the_best_evaluations_parameters_are_exported(last, exported, tmp_path, caplog):
    data = DataConfig(batch_size=4, val="shapes:val")
    config = dataclasses.replace(CONFIG, data=data, eval_every=2)
    scores = (10.0, 60.0, 30.0, 20.0, last)
    caplog.set_level("INFO")
    run(Chase(config, figures=tuple({"val/t2i/R@1": s} for s in scores)), tmp_path / "run")
    alone = dataclasses.replace(config, steps=exported, eval_every=None)
    run(Chase(alone), tmp_path / "alone")
    assert number(tmp_path / "run") == number(tmp_path / "alone")
    told = "step 4 was better (val/t2i/R@1 60.00, 25.00 at the end)"
    assert (told in caplog.text) == (exported == 4)


def test_a_trace_is_written_when_asked_for(tmp_path, caplog):
    for steps in (12, 17):  # The first ends while it is traced
        config = dataclasses.replace(CONFIG, steps=steps, profile=True)
        run(Chase(config), tmp_path / str(steps))
        assert list((tmp_path / str(steps) / "profile").rglob("*.xplane.pb"))
        assert list((tmp_path / str(steps) / "profile").rglob("perfetto_trace.json.gz"))
    run(Chase(dataclasses.replace(CONFIG, profile=True)), tmp_path / "short")
    assert "no trace: the run ended before its step 10" in caplog.text


def test_resuming_forgets_figures_that_will_come_again(tmp_path):
    config = dataclasses.replace(
        CONFIG, data=DataConfig(batch_size=4, val="shapes:val"), eval_every=4, checkpoint_every=5
    )
    figures = tuple({"val/t2i/R@1": s} for s in (1.0, 2.0, 3.0))

    class Crash(Chase):
        def step(self, state, batch, number):
            if number == 9:
                raise RuntimeError("power cut")
            return super().step(state, batch, number)

    with pytest.raises(RuntimeError, match="power cut"):
        run(Crash(config, figures=figures), tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "8")
    assert run(Chase(config, figures=figures[1:]), tmp_path)
    told = [(line["step"], line["val/t2i/R@1"]) for line in read_log(tmp_path) if len(line) == 2]
    assert told == [(4, 1.0), (8, 2.0), (10, 3.0)]
    assert [step for step, _ in losses_only(tmp_path)] == list(range(1, 11))


def losses_only(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(workdir) if "loss" in line]


def truncate(folder: Path) -> None:
    """Cut the arrays' data short."""
    files = [path for path in folder.rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_metadata(folder: Path) -> None:
    (folder / "default" / "_METADATA").unlink()


def garble_metadata(folder: Path) -> None:
    (folder / "default" / "_METADATA").write_text('{"tree_metadata": ')


def lose_manifest(folder: Path) -> None:
    (folder / "default" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("harm", [truncate, lose_metadata, garble_metadata, lose_manifest])
def test_a_damaged_checkpoint_is_named_with_the_remedy(
    harm: Callable[[Path], None], straight, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    shutil.rmtree(workdir / "model")
    harm(workdir / "checkpoints" / "10")
    with pytest.raises(CheckpointError) as caught:
        run(Chase(CONFIG), workdir)
    message = str(caught.value)
    assert message.startswith(f"{workdir / 'checkpoints' / '10'}: this checkpoint cannot be read")
    assert "Delete that folder to go on from the one before it" in message
    assert "\n" not in message and len(message) < 600
    # The remedy works.
    shutil.rmtree(workdir / "checkpoints" / "10")
    assert run(Chase(CONFIG), workdir)
    assert losses(workdir) == losses(straight)
    assert number(workdir) == number(straight)


def test_a_checkpoint_of_another_model_is_refused(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    with pytest.raises(CheckpointError, match=r"checkpoints/10: this checkpoint cannot be read"):
        run(Chase(CONFIG, ballast=5), workdir)


# --- the workdir ----------------------------------------------------------------------------------


def test_another_config_is_refused_field_by_field(tmp_path):
    ours = EdjeRun(steps=5, seed=1)
    claim_workdir(ours, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    theirs = dataclasses.replace(
        ours,
        seed=2,
        optim=OptimConfig(lr=0.5),
        data=DataConfig(train="blip:other.json"),
        log_every=77,
    )
    with pytest.raises(OtherRun) as caught:
        claim_workdir(theirs, tmp_path / "run")
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(str(tmp_path / "run" / "config.json")) and "--workdir" in first
    assert [line.strip() for line in rest] == [
        "data.train: 'shapes:train' there, 'blip:other.json' now",
        "optim.lr: 0.0003 there, 0.5 now",
        "seed: 1 there, 2 now",
    ]
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_a_config_of_another_kind_is_refused(tmp_path):
    claim_workdir(EdjeRun(), tmp_path)
    with pytest.raises(OtherRun, match=r"loss: .* there, None now") as caught:
        claim_workdir(ChaseRun(), tmp_path)
    assert "task: 'edje' there, 'chase' now" in str(caught.value)


def test_a_run_from_before_tasks_had_names_goes_on(tmp_path):
    claim_workdir(EdjeRun(), tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["task"]
    path.write_text(json.dumps(older))
    claim_workdir(EdjeRun(), tmp_path)
    assert json.loads(path.read_text()) == as_json(EdjeRun())


def test_a_run_on_the_shipped_backbone_goes_on_in_another_checkout(tmp_path):
    """A config.json with the path of the shipped backbone resumes as one with the name."""
    ours = EdjeRun(model=ModelSpec(backbone="shapes-backbone"))
    path = tmp_path / "config.json"
    claim_workdir(ours, tmp_path)
    older = as_json(ours)
    older["model"]["backbone"] = "/gone/edje_jax/assets/shapes_backbone"
    path.write_text(json.dumps(older))
    assert read_run(path) == ours
    claim_workdir(ours, tmp_path)
    assert json.loads(path.read_text()) == as_json(ours)


def test_harmless_fields_may_change(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    changed = dataclasses.replace(
        CONFIG,
        workdir="elsewhere",
        log_every=7,
        eval_every=3,
        checkpoint_every=1,
        keep_checkpoints=9,
        data=DataConfig(batch_size=4, workers=3, max_bad=0.5),
    )
    claim_workdir(changed, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == as_json(changed)


def test_fields_that_are_newer_than_a_run_have_their_defaults(tmp_path):
    claim_workdir(CONFIG, tmp_path)
    path = tmp_path / "config.json"
    older = json.loads(path.read_text())
    del older["optim"]["ema"], older["profile"]
    path.write_text(json.dumps(older))
    claim_workdir(CONFIG, tmp_path)
    path.write_text(json.dumps(older))
    changed = dataclasses.replace(CONFIG, optim=OptimConfig(ema=0.9))
    with pytest.raises(OtherRun, match=r"optim\.ema: 0\.0 there, 0\.9 now"):
        claim_workdir(changed, tmp_path)


def test_a_refused_workdir_is_left_alone(straight, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(straight, workdir)
    with pytest.raises(OtherRun):
        run(Chase(dataclasses.replace(CONFIG, steps=20)), workdir)
    assert losses(workdir) == losses(straight) and saved(workdir) == [9, 10]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "kept"), [(0, []), (2, [1, 2, 2]), (3, [1, 2, 2, 3]), (9, [1, 2, 2, 3, 4])]
)
def test_lines_past_a_checkpoint_are_dropped(start, kept, tmp_path):
    path = tmp_path / "metrics.jsonl"
    steps = [1, 2, 2, 3, 4]
    whole = [json.dumps({"step": step, "loss": 0.1}) + "\n" for step in steps]
    path.write_text("".join(whole) + '{"step": 5, "lo')
    drop_after(path, start)
    assert path.read_text() == "".join(whole[: len(kept)])
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("room", [0, 1, 20, 21, 40, 59])
def test_a_full_disk_takes_whole_lines_only(room, tmp_path):
    """However little of a line still fitted."""

    class Full(io.FileIO):
        left = room

        def write(self, data) -> int:
            taken = bytes(data)[: self.left]
            if not taken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= len(taken)
            return super().write(taken)

    path, line = tmp_path / "metrics.jsonl", '{"step": 1, "x": 22}\n'
    with Full(path, "ab") as file, pytest.raises(OSError, match="space"):
        for _ in range(3):
            append(file, line)
    assert path.read_text() == line * (room // len(line))


def test_there_may_be_no_lines_to_drop(tmp_path):
    drop_after(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


# --- a full disk ----------------------------------------------------------------------------------


# A thread of Orbax's still talks to an event loop that the failure has closed.
orbax_grumbles = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@orbax_grumbles
def test_a_full_disk_during_a_checkpoint(small_disk, straight):
    """The first checkpoint fits, the second does not; with room again the run goes on."""
    disk = small_disk(1_000)
    config = dataclasses.replace(CONFIG, steps=9)
    with pytest.raises(CheckpointError) as caught:
        run(Chase(config, ballast=150_000), disk / "run")
    message = str(caught.value)
    assert message.startswith(
        f"{disk / 'run' / 'checkpoints'}: the checkpoint could not be written"
    )
    assert "(No space left on device). Free some space" in message and "\n" not in message
    assert saved(disk / "run") == [3]
    assert losses(disk / "run")[:6] == losses(straight)[:6]
    roomy = disk.parent / "roomy"
    shutil.copytree(disk / "run", roomy)
    assert run(Chase(config, ballast=150_000), roomy)
    assert losses(roomy) == losses(straight)[:9]


def test_a_full_disk_during_the_export(small_disk):
    """An earlier export stays as it is."""
    disk = small_disk(4_000)
    assert run(Chase(CONFIG, ballast=100_000), disk / "run")
    earlier = number(disk / "run")
    ballast = fill(disk)
    task = Chase(CONFIG, ballast=100_000)
    with pytest.raises(OSError, match=re.escape(str(disk / "run"))) as caught:
        run(task, disk / "run")
    assert caught.value.errno == 28
    assert number(disk / "run") == earlier
    assert [p.name for p in (disk / "run").glob(".model*")] == []
    assert len(losses(disk / "run")) == 10
    ballast.unlink()
    assert run(task, disk / "run")


def test_a_full_disk_at_the_start(small_disk):
    disk = small_disk(400)
    fill(disk)
    with pytest.raises(OSError) as caught:
        run(Chase(CONFIG), disk / "run")
    assert caught.value.filename == str(disk / "run" / "config.json")
    assert not list((disk / "run").iterdir())


@orbax_grumbles
def test_a_full_disk_under_way(small_disk, straight):
    disk = small_disk(400)

    class Filling(Chase):
        def step(self, state, batch, number):
            if number == 4:
                while saved(disk / "run") != [3]:
                    time.sleep(0.01)
                fill(disk)
            return super().step(state, batch, number)

    with pytest.raises((OSError, CheckpointError), match=re.escape(str(disk / "run"))):
        run(Filling(CONFIG), disk / "run")
    assert losses(disk / "run")[:4] == losses(straight)[:4]
    assert saved(disk / "run") == [3]
    assert not (disk / "run" / "model").exists()
