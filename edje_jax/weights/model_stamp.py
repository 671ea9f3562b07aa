"""Stamps of models, by which indexes, feature caches and model folders are compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import JOINT_HEADS, EdjeConfig, to_dict


def model_stamp(config: EdjeConfig, fingerprint: str, source: str) -> dict[str, Any]:
    """The stamp that an index carries of the model that made it.

    {"fingerprint", "source", "deferred_layers"}, "image" where images are read in another way than
    the Hugging Face processors do, and "code_lengths" of a model with codes. A folder is named by
    its whole path, as the index is opened from anywhere.
    """
    path = Path(source).expanduser()
    stamp = {
        "fingerprint": fingerprint,
        "source": str(path.resolve()) if path.exists() else source,
        "deferred_layers": config.joint_encoder.deferred_layers,
    }
    if config.image.reading:
        stamp["image"] = config.image.reading
    if config.first_stage and config.first_stage.bits:
        stamp["code_lengths"] = list(config.first_stage.code_lengths)
    return stamp


def model_fingerprint(config: EdjeConfig, params: PyTree[np.ndarray]) -> str:
    """Fingerprint (32 hex digits) of every parameter and of the config of a model."""
    raw = to_dict(config) | {"image": config.image.to_dict()}
    if config.joint_encoder.is_published_layout:
        # Left out, so that models older than deferred layers keep their fingerprints.
        for name in ("deferred_layers", "online_vision"):
            del raw["joint_encoder"][name]
    for name in JOINT_HEADS.keys() - config.joint_heads.keys():
        del raw[name]
    if config.first_stage is None:
        del raw["first_stage"]
    if config.text_recipe == "published":
        del raw["text_recipe"]
    for part, name, default in (
        (raw, "captioner", None),
        (raw, "video", None),
        (raw["adapter"], "upsampling", 1),
        (raw["backbone"], "earlier_layers", ()),
    ):
        if part[name] == default:
            del part[name]
    shapes = json.dumps(raw, sort_keys=True)
    return hashlib.sha256(f"{params_fingerprint(params)} {shapes}".encode()).hexdigest()[:32]


def params_fingerprint(params: PyTree[np.ndarray]) -> str:
    """32 hex digits of the SHA-256 over every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf = np.asarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data.cast("B"))
    return digest.hexdigest()[:32]
