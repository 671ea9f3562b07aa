"""Checkpoints of the published PyTorch code, read and written."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edje_jax.config.model import EdjeConfig
from edje_jax.system.files import atomic_path
from edje_jax.weights import bert, edje
from edje_jax.weights.backbone import Backbone, backbone_rules, expected_params, load_backbone
from edje_jax.weights.folder import Model
from edje_jax.weights.mapping import to_ours, to_theirs
from edje_jax.weights.tensors import BadWeights, open_torch, tensors_of
from edje_jax.weights.torch_states import wrappings

log = logging.getLogger(__name__)

_TOWER, _WHOLE = "vision_encoder.", "clip."
_POSITIONS = "language_model." + bert.POSITIONS
_LONGEST_TEXT, _BERT_POSITIONS = 64, 512


def load_published(
    path: str, backbone: str | None = None, language_model: str | None = None
) -> Model:
    """Read a published EDJE `.pth`, with the two Hugging Face folders it was trained from.

    The frozen dual encoder is taken from the checkpoint where it carries one, as that is what
    the rest was trained on. Tokenizers, head counts and the image recipe come from the folders,
    which the checkpoint's own `config` names if the arguments do not.

    Raises:
        BadWeights: the file is damaged, wants to run code, or names no folders.
        WeightMismatch: it does not fit the folders' configs.
    """
    whole = open_torch(Path(path))
    tensors = modern_names(tensors_of(whole, path))
    stated = next((d["config"] for d in wrappings(whole) if isinstance(d.get("config"), dict)), {})
    tokenizer, joint = bert.read_language_config(
        language_model or _stated(stated, "language_model_path", "--language-model", path)
    )
    if (table := tensors.get(_POSITIONS)) is not None:
        # The rows that are stored count, which may be more than the language model has.
        joint = dataclasses.replace(joint, max_position_embeddings=len(table))
    dual = load_backbone(backbone or _stated(stated, "siglip_path", "--backbone", path))
    dual = _carried(dual, tensors, path)
    adapter = edje.adapter_config(tensors, path)
    config = EdjeConfig(dual.config, adapter, joint, dual.image)
    params = edje.read_params(tensors, config, path)
    return Model(config, params, dual, tokenizer, path)


def save_published(path: Path, model: Model) -> None:
    """Write a model as the published code saves it: frozen towers and repeated tensors included,
    and a row for every position where those are more than a BERT's.

    Raises:
        ValueError: the model has deferred layers, attended vision, a similarity prior, captions as
            written, a captioner's decoders, an adapter that upsamples or frames of videos, of which
            the published code knows nothing.
        BadWeights: PyTorch is not installed.
        OSError: the file could not be written; nothing is left of it.
    """
    import torch

    if what := _unpublished(model.config):
        raise ValueError(
            f"{model.source}: has {what}, of which the published code knows nothing: its"
            " scores would be others; use --to edje or --to onnx"
        )
    if model.config.max_text_length >= _LONGEST_TEXT:
        log.warning(
            "%s: takes captions of up to %d pieces, and the published code cuts them after %d",
            model.source, model.config.max_text_length - 2, _LONGEST_TEXT - 3,
        )  # fmt: skip
    if model.config.first_stage:
        log.warning(
            "%s: its heads of the first stage stay behind, as the published layout has no place"
            " for them; reranking is the same", model.source,
        )  # fmt: skip
    if model.calibration.is_fitted:
        log.warning(
            "%s: its calibration stays behind, as the published layout has no place for it",
            model.source,
        )
    params, backbone_params = jax.device_get((model.params, model.backbone.params))
    tensors = to_theirs(edje.rules(model.config), params)
    if (rows := _LONGEST_TEXT + model.config.num_tokens) > _BERT_POSITIONS:
        tensors[_POSITIONS] = bert.lengthened(tensors[_POSITIONS], rows)
    towers = to_theirs(backbone_rules(model.backbone.config), backbone_params)
    tensors |= {_WHOLE + name: value for name, value in towers.items()}
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    # What repeats another tensor shares its memory, and its place in the file.
    state |= {name: state[same] for name, same in edje.REPEATED.items()}
    for name in towers:
        if name.startswith("vision_model."):
            state[_TOWER + name.removeprefix("vision_model.")] = state[_WHOLE + name]
    with atomic_path(path) as temporary:
        torch.save({"model": state}, temporary)


def _unpublished(config: EdjeConfig) -> str | None:
    """Property of a model by which the published code would give it other scores, if it has one."""
    joint = config.joint_encoder
    present = {
        "deferred layers": joint.deferred_layers > 0,
        "attended vision": not joint.is_published_layout,
        "a similarity prior": config.similarity_prior is not None,
        "captions as written": config.text_recipe != "published",
        "a captioner's decoders": config.captioner is not None,
        "an adapter that upsamples": config.adapter.upsampling > 1,
        "frames of videos": config.video is not None,
    }
    return next((what for what, is_there in present.items() if is_there), None)


def modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename older transformers' `vision_encoder.vision_model.*` to today's `vision_encoder.*`."""
    old = _TOWER + "vision_model."
    return {
        _TOWER + name.removeprefix(old) if name.startswith(old) else name: value
        for name, value in tensors.items()
    }


def _carried(dual: Backbone, tensors: Mapping[str, np.ndarray], source: str) -> Backbone:
    """The backbone with the towers that a checkpoint carries in place of the folder's."""
    found = {
        name.replace(_TOWER, "vision_model.", 1): value
        for name, value in tensors.items()
        if name.startswith(_TOWER)
    } | {
        name.removeprefix(_WHOLE): value
        for name, value in tensors.items()
        if name.startswith(_WHOLE)
    }
    if not found:
        return dual
    table = backbone_rules(dual.config)
    every = to_theirs(table, jax.device_get(dual.params)) | found
    params = to_ours(table, every, expected_params(dual.config), source)
    return dataclasses.replace(dual, params=params, from_folder=False)


def _stated(config: Any, key: str, flag: str, path: str) -> str:
    """A folder or hub id from the checkpoint's own config."""
    value = config.get(key) if isinstance(config, dict) else None
    if not isinstance(value, str) or not value:
        raise BadWeights(
            f"{path}: does not say which model its {key} was; give it as {flag} DIR|HUB_ID"
        )
    return value
