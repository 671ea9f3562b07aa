"""A training checkpoint -> what the run would have exported had it ended there."""

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from edje_jax.config.run import EdjeRun
from edje_jax.system.files import read_json
from edje_jax.training.assemble import assemble
from edje_jax.training.checkpoint import CheckpointError, read_params
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model


def load_checkpoint(path: Path) -> tuple[Model, str]:
    """The model of a training checkpoint, and its card: a workdir (its newest) or one of the
    numbered folders in its `checkpoints/`.

    Neither the training set nor the devices of the run are needed.

    Raises:
        CheckpointError: there is none, it is damaged, or it is no EDJE's.
    """
    workdir, step = _where(path)
    raw = read_json(workdir / "config.json")
    if "model" not in raw:
        raise CheckpointError(
            f"{workdir}: a run of a backbone, which writes a Hugging Face folder when it ends:"
            " run the same train.py command again to let it end"
        )
    config = from_dict(EdjeRun, raw)
    parts = assemble(config, None, workdir)
    params = read_params(workdir / "checkpoints" / str(step))
    # A run of an earlier version may have fewer rows of positions than one begins with today.
    rows = len(params["joint_encoder"]["embeddings"]["position"]["embedding"])
    joint = dataclasses.replace(parts.config.joint_encoder, max_position_embeddings=rows)
    whole = dataclasses.replace(parts.config, joint_encoder=joint)
    model = Model(whole, params, parts.backbone, parts.tokenizer, str(path))
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


def from_dict(kind: Any, raw: dict[str, Any]) -> Any:
    """A config dataclass from what `to_dict` made of it; fields that are new have their default."""
    hints = get_type_hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        if field.name in raw:
            hint, value = hints[field.name], raw[field.name]
            values[field.name] = from_dict(hint, value) if dataclasses.is_dataclass(hint) else value
    return kind(**values)
