"""The table of BERT: Hugging Face's `BertForMaskedLM` <-> the joint encoder's trunk and LM head."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.config.model import BertConfig
from edje_jax.data.tokenizer import padded_as_tokenized
from edje_jax.system.files import read_json
from edje_jax.weights.hub import resolve
from edje_jax.weights.mapping import Rule, linear, norm, under
from edje_jax.weights.other_formats import other_format
from edje_jax.weights.tensors import BadWeights, open_weights

HEAD_PREFIX = "cls.predictions."
POSITIONS = "bert.embeddings.position_embeddings.weight"


def trunk_rules(config: BertConfig) -> list[Rule]:
    """Embeddings and layers."""
    return [*embedding_rules(), *layers_rules(config, "", "bert.encoder.", LAYER)]


def embedding_rules() -> list[Rule]:
    """The tables and their norm."""
    return [
        Rule("embeddings/word/embedding", "bert.embeddings.word_embeddings.weight"),
        Rule("embeddings/position/embedding", POSITIONS),
        Rule("embeddings/segment/embedding", "bert.embeddings.token_type_embeddings.weight"),
        *norm("embeddings/norm", "bert.embeddings.LayerNorm"),
    ]


def layers_rules(config: BertConfig, ours: str, theirs: str, layer: list[Rule]) -> list[Rule]:
    """The rules of a layer for each layer of a stack."""
    return [
        rule
        for i in range(config.num_hidden_layers)
        for rule in under(f"{ours}layers_{i}/", f"{theirs}layer.{i}.", layer)
    ]


def head_rules(ours: str = "masked_lm_head") -> list[Rule]:
    """The masked-LM head; its decoder is the word table."""
    return [
        *linear(f"{ours}/dense", HEAD_PREFIX + "transform.dense"),
        *norm(f"{ours}/norm", HEAD_PREFIX + "transform.LayerNorm"),
        Rule(f"{ours}/bias", HEAD_PREFIX + "bias"),
    ]


LAYER = [
    *linear("query", "attention.self.query"),
    *linear("key", "attention.self.key"),
    *linear("value", "attention.self.value"),
    *linear("attention_output", "attention.output.dense"),
    *norm("attention_norm", "attention.output.LayerNorm"),
    *linear("intermediate", "intermediate.dense"),
    *linear("output", "output.dense"),
    *norm("output_norm", "output.LayerNorm"),
]
"""A layer of an encoder."""


@dataclass(frozen=True)
class LanguageModel:
    """A BERT read from a folder; `config.vocab_size` counts the image placeholder's row."""

    folder: Path
    config: BertConfig
    tensors: dict[str, np.ndarray]
    """Under `BertForMaskedLM`'s names, the word table and LM bias grown by the placeholder."""
    has_head: bool
    """Whether the folder had a masked-LM head; else it starts fresh, tied to the word table."""


def read_language_config(name: str) -> tuple[Path, BertConfig]:
    """The folder of a BERT, and its config with the image placeholder's row and the tokenizer's
    pad id.

    Raises:
        FileNotFoundError: no such folder or id.
        ValueError: not a BERT.
    """
    folder = resolve(name, "the joint encoder")
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: missing; is this a Hugging Face model folder?{other_format(folder)}"
        )
    config = padded_as_tokenized(read_config(read_json(path), str(path)), folder)
    return folder, dataclasses.replace(config, vocab_size=config.vocab_size + 1)


def load_language_model(name: str, seed: int = 0) -> LanguageModel:
    """Read a BERT folder or hub id: with or without the masked-LM head, the `bert.` prefix, or
    the old `gamma` and `beta`. The placeholder's row is drawn from N(0, 0.02).

    Raises:
        FileNotFoundError: no such folder or id.
        BadWeights: the weights are damaged.
        ValueError: not a BERT.
    """
    folder, config = read_language_config(name)
    tensors = normalise_names(open_weights(folder))
    word = tensors.get("bert.embeddings.word_embeddings.weight")
    if word is None:
        raise BadWeights(f"{folder}: no word embeddings here; are these the weights of a BERT?")
    row = np.random.default_rng(seed).normal(0.0, 0.02, (1, word.shape[1])).astype(np.float32)
    tensors["bert.embeddings.word_embeddings.weight"] = np.concatenate([word, row])
    has_head = HEAD_PREFIX + "transform.dense.weight" in tensors
    if has_head:
        tensors[HEAD_PREFIX + "bias"] = np.append(tensors[HEAD_PREFIX + "bias"], np.float32(0))
    return LanguageModel(folder, config, tensors, has_head)


def lengthened(table: np.ndarray, rows: int) -> np.ndarray:
    """A position table of at least `rows` rows: the last one repeated where rows are missing.

    As the published code lengthens BERT's 512 rows for the many vision tokens of a local adapter.
    """
    missing = max(rows - len(table), 0)
    return np.concatenate([table, np.repeat(table[-1:], missing, axis=0)]) if missing else table


def normalise_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """State dicts of any age and head under `BertForMaskedLM`'s present names."""
    out = {}
    for name, value in tensors.items():
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        new = new.replace("LayerNorm.beta", "LayerNorm.bias")
        if new.startswith(("embeddings.", "encoder.")):
            new = "bert." + new
        out[new] = value
    if HEAD_PREFIX + "bias" not in out and HEAD_PREFIX + "decoder.bias" in out:
        out[HEAD_PREFIX + "bias"] = out[HEAD_PREFIX + "decoder.bias"]
    return out


def read_config(raw: dict[str, Any], source: str) -> BertConfig:
    """From a Hugging Face `config.json`; `vocab_size` as it stands there.

    Raises:
        ValueError: another architecture, or a BERT with relative positions.
    """
    kind = raw.get("model_type")
    if kind != "bert":
        is_roberta = kind in ("roberta", "xlm-roberta")
        why = ", as it counts positions from its pad id on and has one segment" * is_roberta
        raise ValueError(
            f"{source}: model_type {kind!r} is not supported as a joint encoder{why}; use a BERT"
            " (MiniLM-L6/L12-H384-uncased, bert-base-uncased, ...; in many languages"
            " microsoft/Multilingual-MiniLM-L12-H384)"
        )
    positions = raw.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(f"{source}: position_embedding_type {positions!r} is not supported")
    names = BertConfig.__dataclass_fields__
    defaults = {**_DEFAULTS, **{name: raw[name] for name in names if name in raw}}
    try:
        return BertConfig(**defaults)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def write_config(config: BertConfig) -> dict[str, Any]:
    """A `config.json` that transformers' `BertForMaskedLM` reads."""
    return {"architectures": ["BertForMaskedLM"], "model_type": "bert", **vars(config)}


# transformers leaves defaults out of config.json; these are its BertConfig's.
_DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
