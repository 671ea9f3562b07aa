"""BERT folders of every age and form give the same language model.

Covers weights/bert.py.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from edje_jax.system.files import read_json, write_json
from edje_jax.weights.bert import (
    HEAD_PREFIX,
    LanguageModel,
    head_rules,
    load_language_model,
    trunk_rules,
)
from edje_jax.weights.tensors import BadWeights

WORDS, BIAS = "bert.embeddings.word_embeddings.weight", HEAD_PREFIX + "bias"
SIZES = {
    "vocab_size": 30,
    "hidden_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
State = dict[str, torch.Tensor]


@functools.cache
def model() -> BertForMaskedLM:
    theirs = BertForMaskedLM(BertConfig(**SIZES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0.0, 1.0, generator=generator)
    return theirs


def state() -> State:
    """`BertForMaskedLM`'s own names; nothing is shared between tensors."""
    return {name: value.clone() for name, value in model().state_dict().items()}


def trunk() -> State:
    """A `BertModel` saved by itself, with the pooler that it has and we do not read."""
    names = {name.removeprefix("bert."): v for name, v in state().items() if "cls." not in name}
    return {**names, "pooler.dense.weight": torch.ones(12, 12), "pooler.dense.bias": torch.ones(12)}


def aged(tensors: State) -> State:
    """Layer norms as they were called once, and the buffer that was saved along."""
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    out = {}
    for name, value in tensors.items():
        for new, former in old.items():
            name = name.replace(new, former)
        out[name] = value
    assert out.keys() != tensors.keys()
    return {**out, "bert.embeddings.position_ids": torch.arange(16)[None]}


def save(folder: Path, tensors: State, kind: str = "bin") -> None:
    """A folder with the weights in one file."""
    write_json(folder / "config.json", {**model().config.to_dict(), "model_type": "bert"})
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def save_sharded(folder: Path) -> None:
    model().save_pretrained(folder, max_shard_size="4KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()


def save_sharded_bin(folder: Path) -> None:
    save(folder, {})
    (folder / "pytorch_model.bin").unlink()
    names, where = sorted(state()), {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"pytorch_model-{i}.bin"
        torch.save({name: state()[name] for name in part}, folder / shard)
        where |= dict.fromkeys(part, shard)
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": where})


def decoder_bias_only() -> State:
    return {name: value for name, value in state().items() if name != BIAS}


WITH_HEAD: dict[str, Callable[[Path], object]] = {
    "as transformers writes it": lambda folder: model().save_pretrained(folder),
    "sharded": save_sharded,
    "bin": lambda folder: save(folder, state()),
    "sharded bin": save_sharded_bin,
    "old names": lambda folder: save(folder, aged(state())),
    "old names, safetensors": lambda folder: save(folder, aged(state()), "safetensors"),
    "bias under the decoder": lambda folder: save(folder, decoder_bias_only()),
}
WITHOUT_HEAD: dict[str, Callable[[Path], object]] = {
    "with the prefix": lambda folder: save(folder, {f"bert.{k}": v for k, v in trunk().items()}),
    "without the prefix": lambda folder: save(folder, trunk()),
    "old, without the prefix": lambda folder: save(folder, aged(trunk())),
    "as transformers writes it": lambda folder: model().bert.save_pretrained(folder),
}


def assert_read(language: LanguageModel, rules) -> None:
    """Every tensor that the rules want is theirs; two have a last row more."""
    expected = {name: value.numpy() for name, value in state().items()}
    for rule in rules:
        value = language.tensors[rule.theirs]
        if rule.theirs in (WORDS, BIAS):
            assert len(value) == SIZES["vocab_size"] + 1 == language.config.vocab_size
            value = value[:-1]
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[rule.theirs], err_msg=rule.theirs)


@pytest.mark.parametrize("form", WITH_HEAD)
def test_every_form_with_a_head_is_the_same_model(form, tmp_path):
    WITH_HEAD[form](tmp_path)
    language = load_language_model(str(tmp_path))
    assert language.has_head and language.folder == tmp_path
    assert_read(language, [*trunk_rules(language.config), *head_rules()])
    assert language.tensors[BIAS][-1] == 0


@pytest.mark.parametrize("form", WITHOUT_HEAD)
def test_every_form_without_a_head_is_the_same_trunk(form, tmp_path):
    WITHOUT_HEAD[form](tmp_path)
    language = load_language_model(str(tmp_path))
    assert not language.has_head
    assert_read(language, trunk_rules(language.config))
    assert not any(rule.theirs in language.tensors for rule in head_rules())


def test_the_placeholder_s_row_is_small_random_and_reproducible(tmp_path):
    save(tmp_path, state())
    rows = [load_language_model(str(tmp_path), seed).tensors[WORDS][-1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).all()
    assert 0.005 < np.std(rows) < 0.05 and np.abs(rows).max() < 0.1


def test_the_config_is_theirs_and_what_it_leaves_out_has_their_default(tmp_path):
    save(tmp_path, state())
    config = load_language_model(str(tmp_path)).config
    for name, value in SIZES.items():
        assert getattr(config, name) == value + (name == "vocab_size")
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu", 1e-12)

    write_json(tmp_path / "config.json", {"model_type": "bert", "hidden_act": "quick_gelu"})
    config, default = load_language_model(str(tmp_path)).config, BertConfig()
    for name in (*SIZES, "layer_norm_eps", "pad_token_id", "type_vocab_size"):
        assert getattr(config, name) == getattr(default, name) + (name == "vocab_size"), name
    assert config.hidden_act == "quick_gelu"


# --- refused --------------------------------------------------------------------------------------


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing; is this a Hugging Face"):
        load_language_model(str(tmp_path))


def test_a_folder_without_weights(tmp_path):
    save(tmp_path, state())
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(BadWeights, match=r"no weights here; looked for model\.safetensors"):
        load_language_model(str(tmp_path))


def test_weights_of_something_else(tmp_path):
    save(tmp_path, {"roberta.embeddings.word_embeddings.weight": torch.ones(2, 2)})
    with pytest.raises(BadWeights, match="no word embeddings here; are these the weights of a BE"):
        load_language_model(str(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported as a joint encoder"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type 'relative_key' is not supported",
        ),
    ],
)
def test_other_architectures(change, message, tmp_path):
    save(tmp_path, state())
    write_json(tmp_path / "config.json", read_json(tmp_path / "config.json") | change)
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        load_language_model(str(tmp_path))


def test_a_name_that_is_neither_folder_nor_hub_id():
    with pytest.raises(
        FileNotFoundError, match=r"nobody/no-such-bert: the joint encoder is neither a folder here"
    ):
        load_language_model("nobody/no-such-bert")
