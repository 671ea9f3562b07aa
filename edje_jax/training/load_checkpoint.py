"""A training checkpoint -> what the run would have exported had it ended there."""

import dataclasses
from pathlib import Path

from edje_jax.config.run import EdjeRun
from edje_jax.config.saved_run import read_run
from edje_jax.training.assemble import assemble
from edje_jax.training.checkpoint import CheckpointError, read_params
from edje_jax.training.losses.table import without_heads
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model


def load_checkpoint(path: Path) -> tuple[Model, str]:
    """The model of a training checkpoint, and its card: a workdir (its newest) or one of the
    numbered folders in its `checkpoints/`.

    Neither the training set nor the devices of the run are needed.

    Raises:
        CheckpointError: there is none, it is damaged, or it is no EDJE's or captioner's.
        ValueError: the run's config.json is not one that this version knows.
    """
    workdir, step = _where(path)
    config = read_run(workdir / "config.json")
    if not isinstance(config, EdjeRun):
        raise CheckpointError(
            f'{workdir}: a run of the task "{config.task}", and not of an EDJE; its model is'
            f" {workdir / 'model'}, written when it ends: run the same command again if it has not"
        )
    parts = assemble(config, None, workdir)
    params = without_heads(read_params(workdir / "checkpoints" / str(step)))
    # A run of an earlier version may have fewer rows of positions than one begins with today.
    scorer = next(part for name, part in params.items() if name != "adapter")
    rows = len(scorer["embeddings"]["position"]["embedding"])
    joint = dataclasses.replace(parts.config.joint_encoder, max_position_embeddings=rows)
    whole = dataclasses.replace(parts.config, joint_encoder=joint)
    model = Model(whole, params, parts.backbone, parts.tokenizer, str(path), heads=parts.heads)
    return model, model_card(model, config)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a workdir with checkpoints or one of them."""
    return (path / "checkpoints").is_dir() or path.parent.name == "checkpoints"


def _where(path: Path) -> tuple[Path, int]:
    """(workdir, step)."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, int(path.name)
    steps = [int(p.name) for p in (path / "checkpoints").iterdir() if p.name.isdigit()]
    if not steps:
        raise CheckpointError(f"{path / 'checkpoints'}: holds no checkpoint yet")
    return path, max(steps)
