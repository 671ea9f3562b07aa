"""The heads of the first stage in a model folder: `first_stage.safetensors` and its config entry.

They stand beside the published tensors, in torch's layout under names of their own:
`image.move.out.weight`, `image.code.out.weight`, `image.mean`, and so on.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.models.heads.first_stage import expected_heads
from edje_jax.weights.mapping import Rule, linear, to_ours, to_theirs
from edje_jax.weights.tensors import BadWeights, Safetensors, write_safetensors

WEIGHTS = "first_stage.safetensors"
SAMPLED = 256
"""Values of each of a backbone's tensors that its stamp is computed from."""


def rules(config: FirstStageConfig) -> list[Rule]:
    """Weight table of both modalities' heads."""
    table = []
    for modality in ("image", "text"):
        for head in ("move", "code") if config.bits else ("move",):
            for layer in ("hidden", "out") if config.hidden_size else ("out",):
                path, name = f"{modality}/{head}/{layer}", f"{modality}.{head}.{layer}"
                has_bias = (head, layer) != ("code", "out")
                table += linear(path, name)[: 1 + has_bias]
        if config.bits:
            table.append(Rule(f"{modality}/mean", f"{modality}.mean"))
    return table


def write_heads(
    folder: Path, config: EdjeConfig, heads: PyTree, backbone: PyTree[np.ndarray]
) -> dict[str, Any]:
    """Write the heads' weights, and return their entry of config.json."""
    assert config.first_stage is not None
    write_safetensors(folder / WEIGHTS, to_theirs(rules(config.first_stage), jax.device_get(heads)))
    return {**dataclasses.asdict(config.first_stage), "backbone": backbone_stamp(backbone)}


def read_config(entry: dict[str, Any], source: str) -> FirstStageConfig:
    """Shape of the heads from their entry of a config.json, which `source` names in messages.

    Raises:
        ValueError: a value is not of its field's type, or out of range.
    """
    known = {field.name for field in dataclasses.fields(FirstStageConfig)}
    try:
        return FirstStageConfig(**{name: value for name, value in entry.items() if name in known})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{source}: "first_stage" of {entry!r}: {error}; train the heads again with edje train'
            " first_stage, or take the entry out to go without them"
        ) from error


def read_heads(
    folder: Path, config: EdjeConfig, entry: dict[str, Any], backbone: PyTree[np.ndarray]
) -> PyTree[np.ndarray]:
    """Weights of the heads of a model folder.

    Raises:
        BadWeights: the file is missing or damaged, or the heads are another backbone's.
        WeightMismatch: they do not fit the shapes that the config states.
    """
    assert config.first_stage is not None
    path = folder / WEIGHTS
    if not path.exists():
        raise BadWeights(
            f"{path}: missing, and config.json has heads of the first stage; fetch the model again"
        )
    if entry.get("backbone") != backbone_stamp(backbone):
        raise BadWeights(
            f"{path}: these heads were trained on another backbone than the one of {folder}; train"
            " heads for this one with edje train first_stage --init, or take the file and"
            ' "first_stage" out of config.json'
        )
    tensors, table = Safetensors([path]), rules(config.first_stage)
    extra = set(tensors) - {rule.theirs for rule in table}
    return to_ours(table, tensors, expected_heads(config), str(path), sorted(extra))


def backbone_stamp(params: PyTree[np.ndarray]) -> str:
    """16 hex digits by which heads know their backbone: of the shapes of its tensors and of some of
    their values in float32, so that they are equal in whatever precision these are stored."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        leaf = np.asarray(leaf)
        step = max(leaf.size // SAMPLED, 1)
        some = leaf.flat[::step]
        digest.update(f"{path} {leaf.shape}\n".encode())
        digest.update(some.astype(np.float32).tobytes())
    return digest.hexdigest()[:16]
