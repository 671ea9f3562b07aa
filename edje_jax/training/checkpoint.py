"""Training state on disk, through Orbax: asynchronous, the best and the last kept."""

import dataclasses
import logging
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers

from edje_jax.training.state import TrainState

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be read or written; the message names it and the remedy."""


class Checkpoints:
    """The `checkpoints/` folder of a run. Orbax writes to a temporary name and renames."""

    def __init__(self, folder: Path, keep: int, best: str = ""):
        """`keep` last checkpoints stay, and the one whose metric `best` is highest."""
        self.folder = folder.absolute()
        self._best = best
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # Without it no metric is written down.
                best_fn=(lambda metrics: metrics[best]) if best else None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Steps taken by the newest whole checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best(self) -> tuple[int, float] | None:
        """(steps taken, metric) of the checkpoint whose metric is highest, if any has one."""
        found = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        values = [(m[self._best], step) for step, m in found.items() if m and self._best in m]
        if not values:
            return None
        value, step = max(values)
        return step, value

    def save(self, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Start to save; returns once the state has been copied off the device.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        saved = ocp.args.StandardSave(_as_stored(state))
        try:
            self._manager.save(step, args=saved, metrics=metrics, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The newest checkpoint, or that of a step, in the shapes, dtypes and shardings of `like`.

        Raises:
            CheckpointError: it is damaged, or of another model.
        """
        step = self.latest_step() if step is None else step
        abstract = _as_stored(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:
            raise CheckpointError(
                f"{self.folder / str(step)}: this checkpoint cannot be read ({_short(error)})."
                " Delete that folder to go on from the one before it, or start in a new --workdir."
            ) from error
        return TrainState(**cast(dict[str, Any], restored))

    def wait(self) -> None:
        """Block until everything asked for is on disk.

        Raises:
            CheckpointError: it could not be written (a full disk, say).
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Finish writing and close. After a failure nothing is raised that would hide it."""
        with suppress(*([Exception] if error else [])):
            self.wait()
            self._manager.close()

    def _unwritten(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: the checkpoint could not be written ({_short(error)})."
            " Free some space, or mend what it names, and run the same command again; earlier"
            " checkpoints are whole."
        )


def _as_stored(state: TrainState) -> dict[str, PyTree]:
    """Fields of a state by name, without a queue where there is none: a checkpoint from before
    there were queues has no such field."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name != "queue" or value is not None}


def read_params(checkpoint: Path) -> PyTree[np.ndarray]:
    """The trainable parameters of a numbered checkpoint folder, on whatever devices it was made.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    folder = checkpoint.absolute() / "default"
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(folder).item_metadata.tree
            # What the run would have exported: the average, if it kept one.
            kept = "average" if tree.get("average") else "params"
            wanted = {kept: tree[kept]}
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            restore = ocp.args.PyTreeRestore(
                item=wanted,
                restore_args=jax.tree.map(lambda _: as_numpy, wanted),
                partial_restore=True,
            )
            return reader.restore(folder, restore)[kept]
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint}: this checkpoint cannot be read ({_short(error)}); name another one"
        ) from error


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    full = "No space left on device"
    return full if full in text else text.splitlines()[0][:200]
