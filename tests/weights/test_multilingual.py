"""Joint encoders from folders of multilingual MiniLMs, against transformers and sentencepiece."""

import functools
import random
import string
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import torch
from transformers import XLMRobertaTokenizer

from edje_jax.config.model import AdapterConfig, EdjeConfig, TextRecipe
from edje_jax.data.text import RECIPES, JointTokenizer
from edje_jax.models.edje import Edje
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import read_json, write_json
from edje_jax.training.masking import choose_masked
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.weights.bert import load_language_model
from edje_jax.weights.folder import load_model
from edje_jax.weights.onnx import _export, _graphs, run
from edje_jax.weights.torch import modeling_edje
from edje_jax.weights.torch.modeling_edje import EdjeModel
from tests.models.test_against_transformers import (
    joint_params,
    published_order_outputs,
    relative,
)
from tests.multilingual_bert import FORMS, PIECES, SENTENCES, pooler, write_bert, write_tokenizer
from tests.training.test_assemble import SIGLIP, edited

RECIPE_NAMES: tuple[TextRecipe, ...] = ("published", "as_written")
BOLD = "<\U0001d429\U0001d41a\U0001d41d>"
SPELT = ["<pad> dogs", "a <mask> b", "</s>x<s>", "\ufe64pad\ufe65", BOLD, "[PAD]"]
"""Captions that spell special tokens; two do after Unicode's compatibility normalisation alone."""
M = 5
"""Tokens of an image."""


@pytest.fixture(scope="module", params=FORMS)
def multilingual(request, tmp_path_factory):
    """(folder, transformers' model of it)"""
    folder = tmp_path_factory.mktemp("multilingual") / request.param
    folder.mkdir()
    return folder, write_bert(folder, request.param)


# --- ids ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("length", [12, 200])
def test_ids_are_those_of_transformers(multilingual, recipe, length):
    folder, _ = multilingual
    theirs = XLMRobertaTokenizer.from_pretrained(folder)
    read = [RECIPES[recipe](sentence) for sentence in SENTENCES]
    made = theirs(read, padding="max_length", truncation=True, max_length=length)["input_ids"]
    ours = JointTokenizer(folder, length, recipe)
    np.testing.assert_array_equal(ours(SENTENCES), made)
    mask = ours.vocab_size - 1
    assert ours.special_ids == (1, 0, 2, mask, 3)
    assert len(np.unique(made)) > 40


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_ids_are_those_of_sentencepiece(recipe, tmp_path):
    """XLM-RoBERTa numbers a piece one higher than its file does, and unknown ones 3."""
    write_tokenizer(tmp_path, "microsoft")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / PIECES))
    ours = JointTokenizer(tmp_path, 200, recipe)
    for sentence in SENTENCES:
        ids = [i + 1 if i else 3 for i in pieces.encode(RECIPES[recipe](sentence))]
        expected = [0, *ids, 2]
        row = ours([sentence])[0]
        assert row[: len(expected)].tolist() == expected, sentence
        assert (row[len(expected) :] == 1).all()


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_padding_is_the_tail_of_every_row(multilingual, recipe):
    ours = JointTokenizer(multilingual[0], 40, recipe)
    for row in ours([*SENTENCES, *SPELT]):
        used = int((row != ours.pad_id).sum())
        assert (row[used:] == ours.pad_id).all()
        assert row[0] == ours.cls_id and row[used - 1] == ours.sep_id
        assert set(row[1 : used - 1].tolist()).isdisjoint({0, 1, 2, ours.mask_id})


def test_words_are_found_in_captions_as_written(multilingual):
    ours = JointTokenizer(multilingual[0], 60, "as_written")
    words = ours.words(SENTENCES[3])
    assert [word for word, _ in words] == SENTENCES[3].split()
    pieces = [place for _, places in words for place in places]
    assert pieces == list(range(1, 1 + len(pieces)))


def test_masking_leaves_special_ids_alone(multilingual):
    ours = JointTokenizer(multilingual[0], 60)
    ids = ours(SENTENCES)
    everything = choose_masked(
        jnp.asarray(ids), jnp.ones(len(ids), bool), 1.0, ours.special_ids, jax.random.key(0)
    )
    np.testing.assert_array_equal(everything, (ids > 3) & (ids != ours.mask_id))
    assert np.asarray(everything).sum() > 100


# --- numbers --------------------------------------------------------------------------------------


def of_joint_encoder(multilingual) -> tuple[EdjeConfig, dict]:
    """Config and parameters of a joint encoder: pooler as in `pooler`, random match weights."""
    folder, theirs = multilingual
    language = load_language_model(str(folder))
    config = EdjeConfig(adapter=AdapterConfig(num_tokens=M), joint_encoder=language.config)
    dense = pooler(theirs)
    kernel = np.random.default_rng(4).normal(size=(config.joint_encoder.hidden_size, 1))
    return config, {
        **joint_params(config, language),
        "pooler": {
            "kernel": dense.weight.detach().numpy().T,
            "bias": dense.bias.detach().numpy(),
        },
        "classifier": {"kernel": kernel.astype(np.float32), "bias": np.zeros(1, np.float32)},
    }


def some_tokens(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, M, width)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("config", "method"))
def outputs(config: EdjeConfig, params, *args, method: str):
    return Edje(config).apply({"params": {"joint_encoder": params}}, *args, method=method)


def test_states_and_pooled_outputs_are_transformers_own(multilingual):
    folder, theirs = multilingual
    config, params = of_joint_encoder(multilingual)
    assert config.joint_encoder.pad_token_id == 1
    ids = JointTokenizer(folder, 60, "as_written")([s for s in SENTENCES if s])
    lengths = (ids != 1).sum(axis=1).tolist()
    tokens = some_tokens(len(ids), config.joint_encoder.hidden_size)
    expected, logits = published_order_outputs(theirs, ids, tokens, lengths)

    states = outputs(config, params, ids, tokens, method="hidden_states")
    assert len(states) == len(expected) == 4
    for ours, state in zip(states, expected, strict=True):
        for row, length in enumerate(lengths):
            caption = ours[row, M + 1 : M + 1 + length]
            published = np.concatenate([caption, ours[row, : M + 1]])
            assert relative(published, state[row, : length + M + 1]) <= 1e-5

    pooled = torch.tanh(pooler(theirs)(expected[-1][:, 0]))
    match = pooled @ torch.from_numpy(params["classifier"]["kernel"])[:, 0]
    assert relative(outputs(config, params, ids, tokens, method="match"), match) <= 1e-5

    if "masked_lm_head" in params:
        places = np.flatnonzero(ids != 1)[None]
        ours = outputs(config, params, ids, tokens, places, method="masked_lm")[0]
        present = torch.from_numpy(ids != 1)
        assert relative(ours[:, :-1], logits[:, : ids.shape[1]][present]) <= 1e-5


def test_a_logit_does_not_depend_on_the_padding(multilingual):
    config, params = of_joint_encoder(multilingual)
    tokenizer = JointTokenizer(multilingual[0], 64)
    tokens = some_tokens(2, config.joint_encoder.hidden_size)
    captions = ["Eis", "狗"]
    scores = [
        outputs(config, params, tokenizer(captions, length), tokens, method="match")
        for length in (8, 16, 32, 64)
    ]
    assert np.abs(scores[0]).min() > 0.01
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-5)


# --- from the folder to a model, and back ---------------------------------------------------------


LONGEST = 100


@pytest.fixture(scope="module")
def task(multilingual, tmp_path_factory) -> EdjeTask:
    """A run that starts from the folder: captions as written, up to 98 pieces."""
    config = edited(
        backbone=SIGLIP, joint_encoder=str(multilingual[0]), text_recipe="as_written",
        max_text_length=LONGEST,
    )  # fmt: skip
    return EdjeTask(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def model_folder(task, tmp_path_factory) -> Path:
    """Model folder that a run would export before its first step."""
    out = tmp_path_factory.mktemp("models") / "model"
    out.mkdir()
    task.export(task.fetch(task.init()), out)
    return out


def test_fine_tuning_starts_from_it(task, multilingual):
    state = task.init()
    table = np.asarray(state.params["joint_encoder"]["embeddings"]["word"]["embedding"])
    theirs = multilingual[1].bert.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(table[:-1], theirs)


@pytest.mark.slow
@pytest.mark.parametrize("multilingual", ["microsoft"], indirect=True)
def test_it_takes_a_step(task):
    state, (batch, _) = task.init(), task.reader[0]
    before = np.asarray(state.params["joint_encoder"]["embeddings"]["word"]["embedding"])
    assert (batch.joint_ids[:, 0] == 0).all() and (batch.joint_ids == 2).sum() == len(batch.valid)
    after, metrics = task.step(state, batch, 0)
    assert np.isfinite(float(metrics["loss"]))
    moved = np.asarray(after.params["joint_encoder"]["embeddings"]["word"]["embedding"])
    assert (moved != before).any() and np.isfinite(moved).all()


def test_the_model_folder_says_how_captions_are_read(model_folder, task):
    raw = read_json(model_folder / "config.json")
    assert (raw["format"], raw["text_recipe"], raw["max_text_length"]) == (6, "as_written", 100)
    assert raw["joint_encoder"]["pad_token_id"] == 1
    assert load_model(str(model_folder)).config == task.model_config
    assert "| captions | as written: casing and punctuation kept |" in (
        model_folder / "README.md"
    ).read_text("utf-8")
    reranker = Reranker.from_pretrained(model_folder)
    ids = reranker.runtime.joint_tokenizer(SENTENCES)
    np.testing.assert_array_equal(ids, task.joint_tokenizer(SENTENCES))
    assert (ids != JointTokenizer(model_folder, LONGEST)(SENTENCES)).any()


CAPTIONS = [*SENTENCES, *SPELT, " ".join(SENTENCES)]
"""Captions that are scored, of which the last is cut."""


def tokens_of_pairs(config: EdjeConfig) -> np.ndarray:
    shape = (len(CAPTIONS), config.num_tokens, config.joint_encoder.hidden_size)
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def test_pytorch_scores_as_we_do(model_folder):
    reranker = Reranker.from_pretrained(model_folder)
    tokens = tokens_of_pairs(reranker.config)
    ours = reranker.score(CAPTIONS, tokens)

    model = EdjeModel.from_folder(model_folder)
    text = model.tokenize(CAPTIONS)
    ids = reranker.runtime.joint_tokenizer(CAPTIONS)
    assert (ids != 1).sum(axis=1).max() == LONGEST
    np.testing.assert_array_equal(text["input_ids"], ids)
    np.testing.assert_array_equal(text["attention_mask"], ids != 1)
    with torch.no_grad():
        theirs = model.score(**text, tokens=torch.from_numpy(tokens)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_pytorch_module_reads_captions_alike():
    rng = random.Random(1)
    alphabet = string.printable + "éÃ“—ﬁ😀两&amp;\u200b"
    for _ in range(300):
        caption = "".join(rng.choices(alphabet, k=30))
        for name, read in RECIPES.items():
            assert modeling_edje.RECIPES[name](caption) == read(caption), repr(caption)


@pytest.mark.slow
@pytest.mark.parametrize("multilingual", ["microsoft"], indirect=True)
def test_onnx_scores_as_we_do(model_folder, tmp_path):
    reranker, model = Reranker.from_pretrained(model_folder), EdjeModel.from_folder(model_folder)
    _export(_graphs(model)["online"], tmp_path / "online.onnx")
    tokens = tokens_of_pairs(reranker.config)
    text = {name: value.numpy() for name, value in model.tokenize(CAPTIONS).items()}
    (theirs,) = run(tmp_path / "online.onnx", **text, tokens=tokens)
    np.testing.assert_allclose(theirs, reranker.score(CAPTIONS, tokens), atol=1e-5)


# --- refused --------------------------------------------------------------------------------------


def test_xlm_roberta_itself_is_refused(multilingual, tmp_path):
    raw = read_json(multilingual[0] / "config.json") | {"model_type": "xlm-roberta"}
    write_json(tmp_path / "config.json", raw)
    told = (
        rf"^{tmp_path / 'config.json'}: model_type 'xlm-roberta' is not supported as a joint"
        " encoder, as it counts positions from its pad id on .*Multilingual-MiniLM"
    )
    with pytest.raises(ValueError, match=told):
        load_language_model(str(tmp_path))
