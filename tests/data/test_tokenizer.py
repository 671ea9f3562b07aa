"""Tokenizers of every form: what loads in a folder loads in the model folder made of it."""

import functools
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertConfig

from edje_jax.config.model import EdjeConfig
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.data.tokenizer import (
    copy_joint_tokenizer,
    copy_tokenizer,
    load_tokenizer,
    same_tokenizer,
)
from edje_jax.models.edje import Edje
from edje_jax.search.reranker import Reranker
from edje_jax.training.assemble import assemble
from edje_jax.weights.bert import load_language_model, read_language_config
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.published import load_published
from tests.training.test_assemble import edited

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
CAPTIONS = ["two dogs run on the beach", "a cat sat on a red mat", "trees"]
XLM_R = "XLMRobertaTokenizer"


def sentencepiece_file(path: Path, **special: int) -> None:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_writer=file, vocab_size=60,
        hard_vocab_limit=False, minloglevel=2, **special,
    )  # fmt: skip
    path.write_bytes(file.getvalue())


def state(folder: Path, name: str, **values: object) -> None:
    (folder / name).write_text(json.dumps(values))


# --- the joint encoder's --------------------------------------------------------------------------


def xlm_r(folder: Path) -> None:
    """XLM-RoBERTa's pieces, which number `<s>` 0 and `<pad>` 1."""
    sentencepiece_file(folder / "sentencepiece.bpe.model", unk_id=0, bos_id=1, eos_id=2, pad_id=-1)


def xlm_r_named_by_its_settings(folder: Path) -> None:
    xlm_r(folder)
    state(folder, "tokenizer_config.json", tokenizer_class=XLM_R)


def xlm_r_named_by_the_model(folder: Path) -> None:
    xlm_r(folder)
    state(folder, "config.json", model_type="bert", tokenizer_class=XLM_R)


def xlm_r_in_json(folder: Path) -> None:
    xlm_r(folder)
    load_tokenizer(folder, "bert").save_pretrained(folder)
    (folder / "sentencepiece.bpe.model").unlink()
    (folder / "tokenizer_config.json").unlink()
    state(folder, "config.json", model_type="bert", tokenizer_class=XLM_R)


def words(folder: Path) -> None:
    """BERT's vocab.txt alone, whose [PAD] is not the first."""
    known = sorted({word for caption in CAPTIONS for word in caption.split()})
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *known]) + "\n")


JOINT: dict[str, Callable[[Path], None]] = {
    "sentencepiece.bpe.model": xlm_r,
    "its class in tokenizer_config.json": xlm_r_named_by_its_settings,
    "its class in config.json": xlm_r_named_by_the_model,
    "tokenizer.json, its class in config.json": xlm_r_in_json,
    "vocab.txt": words,
}


@pytest.mark.parametrize("form", JOINT)
def test_a_joint_encoder_s_copy_makes_the_same_ids(form, tmp_path):
    source, target = tmp_path / "bert", tmp_path / "model"
    source.mkdir()
    target.mkdir()
    JOINT[form](source)
    ours = JointTokenizer(source, 40)
    assert ours.pad_id == 1 and len(np.unique(ours(CAPTIONS))) > 5
    copy_joint_tokenizer(source, target)
    state(target, "config.json", model_type="edje")
    np.testing.assert_array_equal(JointTokenizer(target, 40)(CAPTIONS), ours(CAPTIONS))
    assert same_tokenizer(source, target)
    # As the PyTorch module in the folder opens it.
    theirs = AutoTokenizer.from_pretrained(target, config=BertConfig())
    made = theirs(CAPTIONS, padding="max_length", max_length=40)["input_ids"]
    np.testing.assert_array_equal(made, ours(CAPTIONS))


def test_tokenizers_of_other_words_are_told_apart(tmp_path):
    for name, vocabulary in (("a", "[UNK]\n[PAD]\nx\n"), ("b", "[UNK]\n[PAD]\ny\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vocab.txt").write_text(vocabulary)
    assert same_tokenizer(tmp_path / "a", tmp_path / "a")
    assert not same_tokenizer(tmp_path / "a", tmp_path / "b")
    assert not same_tokenizer(tmp_path / "a", tmp_path)


# --- the backbone's -------------------------------------------------------------------------------


def clip(folder: Path) -> None:
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz"})
    ends = [f"{letter}</w>" for letter in letters]
    pieces = [*letters, *ends, "do", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nd o\n")
    state(folder, "config.json", model_type="clip")


def siglip(folder: Path) -> None:
    sentencepiece_file(folder / "spiece.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    state(folder, "config.json", model_type="siglip")


def gemma(folder: Path) -> None:
    name = folder / "tokenizer.model"
    sentencepiece_file(name, pad_id=0, eos_id=1, bos_id=2, unk_id=3, model_type="bpe")
    state(folder, "config.json", model_type="siglip")
    state(folder, "tokenizer_config.json", tokenizer_class="GemmaTokenizer")


BACKBONES = {"vocab.json and merges.txt": clip, "spiece.model": siglip, "tokenizer.model": gemma}


@pytest.mark.parametrize("form", BACKBONES)
def test_a_backbone_s_copy_makes_the_same_ids(form, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    BACKBONES[form](source)
    ours = BackboneTokenizer(source, 40)(CAPTIONS)
    assert len(np.unique(ours)) > 5
    copy_tokenizer(source, target)
    shutil.copyfile(source / "config.json", target / "config.json")
    np.testing.assert_array_equal(BackboneTokenizer(target, 40)(CAPTIONS), ours)


# --- refused --------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer here; .*sentencepiece\.bpe\.model"):
        load_tokenizer(tmp_path)


def test_half_a_tokenizer(tmp_path):
    clip(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"half a tokenizer; its merges\.txt is missing"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_that_its_class_does_not_find(tmp_path):
    sentencepiece_file(tmp_path / "spiece.model")
    with pytest.raises(ValueError, match=r"BertTokenizer finds no words in spiece\.model; na"):
        load_tokenizer(tmp_path, "bert")


def test_a_tokenizer_that_is_damaged(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer can be made of tokenizer\.json \(.*fetch"):
        load_tokenizer(tmp_path, "bert")


# --- the pad id -----------------------------------------------------------------------------------


@pytest.fixture
def multilingual(tmp_path) -> Path:
    """As the public multilingual MiniLMs: XLM-RoBERTa's tokenizer, a config that pads with 0."""
    folder = tmp_path / "multilingual"
    folder.mkdir()
    xlm_r(folder)
    size = len(load_tokenizer(folder, "bert"))
    raw = json.loads((TINY / "bert" / "config.json").read_text())
    state(folder, "config.json", **raw | {"vocab_size": size, "pad_token_id": 0})
    tensors = load_file(TINY / "bert" / "model.safetensors")
    generator = np.random.default_rng(0)
    for name, value in tensors.items():
        if value.shape[:1] == (raw["vocab_size"],):
            shape = (size, *value.shape[1:])
            tensors[name] = generator.normal(size=shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_pad_id_of_a_joint_encoder_is_its_tokenizer_s(multilingual, tmp_path, caplog):
    assert load_language_model(str(multilingual)).config.pad_token_id == 1
    told = "config.json says pad_token_id 0, but the tokenizer pads with 1, which is taken"
    assert f"{multilingual}: {told}" in caplog.text
    config = edited(backbone=str(TINY / "siglip"), joint_encoder=str(multilingual))
    assert assemble(config, None, tmp_path).config.joint_encoder.pad_token_id == 1


def test_a_config_that_agrees_is_not_spoken_of(caplog):
    caplog.set_level(logging.INFO)
    assert read_language_config(str(TINY / "bert"))[1].pad_token_id == 0
    assert "pad" not in caplog.text


def with_words_of(folder: Path, path: Path) -> Model:
    """The compressed checkpoint, its words those of another language model."""
    rows = read_language_config(str(folder))[1].vocab_size
    tensors = torch.load(TINY / "compressed.pth", weights_only=True)["model"]
    generator = torch.Generator().manual_seed(0)
    for name, value in tensors.items():
        if "language_model" in name and value.shape[0] == 69:
            tensors[name] = torch.randn((rows, *value.shape[1:]), generator=generator)
    torch.save({"model": tensors}, path)
    return load_published(str(path), str(TINY / "siglip"), str(folder))


def test_a_logit_is_the_same_however_far_a_caption_is_padded(multilingual, tmp_path):
    """From a model folder whose config has the wrong id, as earlier versions wrote it."""
    model = with_words_of(multilingual, tmp_path / "edje.pth")
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(folder, model, "")
    raw = json.loads((folder / "config.json").read_text())
    assert raw["joint_encoder"]["pad_token_id"] == 1
    raw["joint_encoder"]["pad_token_id"] = 0
    state(folder, "config.json", **raw)
    assert load_model(str(folder)).config == model.config

    reranker = Reranker.from_pretrained(str(folder))
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(1, model.config.num_tokens, 32)).astype(np.float32)
    scores = [
        score(model.config, model.params, JointTokenizer(folder, 63)(CAPTIONS[2:], length), tokens)
        for length in (16, 63)
    ]
    np.testing.assert_allclose(scores, [scores[0]] * 2, atol=1e-5)
    np.testing.assert_allclose(reranker.score(CAPTIONS[2:], tokens), scores[0], atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def score(config: EdjeConfig, params, ids: jax.Array, tokens: jax.Array) -> jax.Array:
    return Edje(config).apply({"params": params}, ids, tokens, method="match")
