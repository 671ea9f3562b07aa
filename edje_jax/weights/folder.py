"""The model folder: the one interchange format, saved and loaded.

`config.json`, `model.safetensors` (the published names in torch's layout, without the frozen
towers), the joint encoder's tokenizer, `backbone/` (a Hugging Face folder as it is) or the
backbone's hub id in the config, `first_stage.safetensors` of a model with heads of the first stage,
`calibration.json` of one that `edje tune` was saved to, and a `README.md`.
"""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import JOINT_HEADS, AdapterConfig, EdjeConfig
from edje_jax.data.tokenizer import copy_joint_tokenizer, copy_tokenizer, padded_as_tokenized
from edje_jax.system.files import read_json, write_json
from edje_jax.weights import bert, edje, first_stage
from edje_jax.weights.backbone import Backbone, backbone_rules, load_backbone
from edje_jax.weights.calibration import read_calibration, write_calibration
from edje_jax.weights.families.registry import FAMILIES
from edje_jax.weights.hub import exported, resolve
from edje_jax.weights.mapping import to_theirs
from edje_jax.weights.preprocessor import restate_reading
from edje_jax.weights.tensors import Safetensors, open_weights, weight_files, write_safetensors

EXPORT = Path(__file__).parent / "torch"
modeling_edje = EXPORT / "modeling_edje.py"
"""The PyTorch module that every model folder carries."""
cross_encoder = EXPORT / "edje_cross_encoder.py"
"""Module with which sentence-transformers opens a model folder."""

FORMAT = 8
"""Raised when a folder of today could not be read by the code of yesterday. 2 has deferred layers,
3 a recipe that applies ICC profiles or puts images on white, 4 a similarity prior or another head
on the joint encoder that a published checkpoint has not, 5 heads of the first stage, 6 another text
recipe, 7 a captioner or an adapter that upsamples, 8 a model of videos; a folder is written as the
lowest that says what it has."""


@dataclass(frozen=True)
class Model:
    """A whole EDJE in memory."""

    config: EdjeConfig
    params: PyTree[np.ndarray]
    """`adapter`, and `joint_encoder` or `captioner`."""
    backbone: Backbone
    tokenizer: Path
    """Folder with the joint encoder's tokenizer."""
    source: str
    """Origin of the model, for messages and results."""
    calibration: Calibration = UNTUNED
    heads: PyTree[np.ndarray] | None = None
    """Heads of the first stage (`models.heads.first_stage`), of a model that has them."""


def load_model(name: str) -> Model:
    """Load a model folder, a training workdir (its `model/`), a shipped model, or a hub id.

    Raises:
        FileNotFoundError: no such folder or id.
        ValueError: the folder is of another architecture or of a newer format, or its calibration
            is damaged.
        BadWeights, WeightMismatch: the weights are damaged or do not fit.
    """
    folder = model_folder(name)
    raw = read_model_config(folder)
    joint = bert.read_config(raw["joint_encoder"], str(folder / "config.json"))
    joint = padded_as_tokenized(joint, folder)
    inside = folder / str(raw["backbone"])
    backbone = load_backbone(str(inside) if inside.is_dir() else raw["backbone"])
    stated = raw.get("vision_tokens") or {}
    try:
        backbone = backbone.with_vision_tokens(**stated)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{folder / "config.json"}: "vision_tokens" of {stated!r}: {error}; export the model'
            " again, or fetch it anew"
        ) from error
    further: dict[str, Any] = {
        name: kind(**raw[name]) for name, kind in JOINT_HEADS.items() if raw.get(name) is not None
    }
    entry = raw.get("first_stage")
    stage = first_stage.read_config(entry, str(folder / "config.json")) if entry else None
    path = folder / "config.json"
    if (kind := raw.get("kind", "edje")) != "edje":
        further["captioner"] = _captioner(kind, raw, path)
    further["video"] = _video(raw.get("video"), path)
    try:
        adapter = AdapterConfig(**raw["adapter"])
        config = EdjeConfig(
            backbone.config, adapter, joint, backbone.image, raw["max_text_length"],
            first_stage=stage, text_recipe=raw.get("text_recipe", "published"), **further,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config.check_positions(str(path))
    params = edje.read_params(_tensors(folder, config.joint_heads), config, str(folder))
    heads = first_stage.read_heads(folder, config, entry, backbone.params) if entry else None
    calibration = read_calibration(folder)
    return Model(config, params, backbone, folder, str(name), calibration, heads)


def _captioner(kind: Any, raw: dict[str, Any], path: Path) -> CaptionerConfig:
    """The entry "captioner" of a config.json of a kind other than EDJE.

    Raises:
        ValueError: there is no such kind, or the entry is missing, or names a setting or a value
            that this version does not know.
    """
    try:
        if kind != "captioner":
            raise ValueError(f"kind {kind!r}: edje or captioner")
        return CaptionerConfig(**raw["captioner"])
    except KeyError:
        raise ValueError(
            f'{path}: kind "captioner", and no entry of that name; export the model again, or fetch'
            " it anew"
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; export the model again, or fetch it anew") from error


def _video(entry: Any, path: Path) -> VideoConfig | None:
    """The entry "video" of a config.json; None for a model of images.

    Raises:
        ValueError: it names a setting or a value that this version does not know.
    """
    if entry is None:
        return None
    try:
        parts = {"sampling": FrameSampling(**entry["sampling"]), "pooling": entry["pooling"]}
        return VideoConfig(**{**entry, **parts})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path}: "video" of {entry!r}: {error}; export the model again, or fetch it anew'
        ) from error


def _tensors(folder: Path, heads: Collection[str]) -> Mapping[str, np.ndarray]:
    """Tensors of the published layout, and those of further heads, if there are some."""
    tensors = open_weights(folder)
    if not heads:
        return tensors
    return {**Safetensors([folder / f"{name}.safetensors" for name in heads]), **tensors}


def model_folder(name: str) -> Path:
    """The model folder that a folder, a training workdir, a shipped name or a hub id means.

    Raises:
        FileNotFoundError: no such folder or id.
    """
    return exported(resolve(name, "the model"))


def read_model_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not an EDJE's, or of a format this version cannot read.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{folder}: not a model folder (it has no config.json); give the folder called"
            " model/ that training leaves, its workdir, or a hub id"
        )
    raw = read_json(path)
    if raw.get("model_type") != "edje":
        hint = " A run of tiny_backbone? Then give it as --model.backbone."
        raise ValueError(
            f"{path}: model_type is {raw.get('model_type')!r}, not 'edje'."
            + (hint if raw.get("model_type") in list(FAMILIES) else "")
        )
    if raw.get("format", 0) > FORMAT:
        raise ValueError(
            f"{path}: format {raw['format']} is newer than this version reads ({FORMAT});"
            " update edje_jax"
        )
    if missing := {"adapter", "joint_encoder", "backbone", "max_text_length"} - set(raw):
        raise ValueError(
            f"{path}: no {', '.join(sorted(missing))}; export the model again, or fetch it anew"
        )
    return raw


def save_model(folder: Path, model: Model, card: str) -> None:
    """Write a model folder into an existing empty folder; the config goes last."""
    copy_joint_tokenizer(model.tokenizer, folder)
    copy_backbone(model.backbone, folder / "backbone")
    (folder / "README.md").write_text(card, "utf-8")
    tensors = to_theirs(edje.rules(model.config), jax.device_get(model.params))
    for head in model.config.joint_heads:
        names = [rule.theirs for rule in edje.head_rules(model.config, head)]
        own = {name: tensors.pop(name) for name in names}
        write_safetensors(folder / f"{head}.safetensors", own)
    write_safetensors(folder / "model.safetensors", tensors)
    if model.calibration != UNTUNED:
        write_calibration(folder, model.calibration)
    for code in (modeling_edje, cross_encoder):
        shutil.copyfile(code, folder / code.name)
    module = {"idx": 0, "name": "0", "path": "", "type": f"{cross_encoder.stem}.EdjeCrossEncoder"}
    write_json(folder / "modules.json", [module])
    write_json(folder / "config_sentence_transformers.json", {"model_type": "CrossEncoder"})
    config = model.config
    heads = {}
    if config.first_stage:
        heads["first_stage"] = first_stage.write_heads(
            folder, config, model.heads, model.backbone.params
        )
    write_json(
        folder / "config.json",
        {
            "model_type": "edje",
            "format": _format(config),
            "architectures": ["EdjeModel"],
            # What transformers' Auto classes take from the file beside this one.
            "auto_map": {
                "AutoConfig": f"{modeling_edje.stem}.EdjeConfig",
                "AutoModel": f"{modeling_edje.stem}.EdjeModel",
            },
            "backbone": "backbone",
            "vision_tokens": _vision_tokens(config),
            "vision_width": config.backbone.vision.hidden_size,
            "vision_heads": config.backbone.vision.num_attention_heads,
            "embedding_size": config.backbone.text.projection_size,
            "num_tokens": config.num_tokens,
            "adapter": _adapter(config),
            "joint_encoder": bert.write_config(config.joint_encoder),
            "max_text_length": config.max_text_length,
            **{name: dataclasses.asdict(head) for name, head in config.joint_heads.items()},
            **heads,
            **_text_recipe(config),
            **_kind(config),
            **({"video": dataclasses.asdict(config.video)} if config.video else {}),
        },
    )


def _vision_tokens(config: EdjeConfig) -> dict[str, Any]:
    """Entry of config.json; earlier layers only where there are some."""
    backbone = config.backbone
    earlier = {"earlier_layers": list(backbone.earlier_layers)} if backbone.earlier_layers else {}
    return {"token_layer": backbone.token_layer, "class_token": backbone.class_token, **earlier}


def _adapter(config: EdjeConfig) -> dict[str, Any]:
    """Entry of config.json; the upsampling only where there is some."""
    entry = dataclasses.asdict(config.adapter)
    return {k: v for k, v in entry.items() if k != "upsampling" or v > 1}


def _kind(config: EdjeConfig) -> dict[str, Any]:
    """Entries of config.json that say that a model is a captioner."""
    if not config.captioner:
        return {}
    return {"kind": config.kind, "captioner": dataclasses.asdict(config.captioner)}


def _text_recipe(config: EdjeConfig) -> dict[str, str]:
    """Entry of config.json, of a model with another text recipe than the published one."""
    is_published = config.text_recipe == "published"
    return {} if is_published else {"text_recipe": config.text_recipe}


def _format(config: EdjeConfig) -> int:
    if config.video:
        return 8
    if config.captioner or config.adapter.upsampling > 1:
        return 7
    if _text_recipe(config):
        return 6
    if config.first_stage:
        return 5
    if config.joint_heads:
        return 4
    if config.image.reading:
        return 3
    return 1 if config.joint_encoder.is_published_layout else 2


def copy_backbone(backbone: Backbone, target: Path) -> None:
    """Copy what a backbone is read from and nothing else that lies beside it.

    Torch's files, weights with a trainer's names, and those that are not the folder's are written
    as safetensors: who loads the model needs no PyTorch.
    """
    target.mkdir(exist_ok=True)
    source = backbone.folder
    names = ("config.json", "preprocessor_config.json", "processor_config.json")
    paths = [source / name for name in names if (source / name).exists()]
    stored = open_weights(source) if backbone.from_folder else None
    if isinstance(stored, Safetensors) and stored.as_stored:
        paths += weight_files(source)
    else:
        tensors = to_theirs(backbone_rules(backbone.config), jax.device_get(backbone.params))
        write_safetensors(target / "model.safetensors", tensors)
    for path in paths:
        shutil.copyfile(path, target / path.name)
    restate_reading(target, backbone.image)
    copy_tokenizer(source, target)
