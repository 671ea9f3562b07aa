"""The tokenizers of every backbone family, trained small here, against transformers' own calls."""

import dataclasses
import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPTokenizer, SiglipTokenizer
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.data.text import BackboneTokenizer, canonicalise
from edje_jax.system.files import write_json
from edje_jax.weights.backbone import read_backbone_config
from edje_jax.weights.families.clip import write_config as clip_config
from edje_jax.weights.families.siglip import write_config as siglip_config
from edje_jax.weights.preprocessor import recipe_to_preprocessor

CAPTIONS = [
    "two dogs run on the beach",
    "A Dog's life, on_the BEACH!",
    "the children's café &amp; bar",
    "",
    "狗 😀",
    "the beach the dog the cat " * 40,
]
CORPUS = [canonicalise(c) for c in CAPTIONS] + ["a cat sat on a red mat near 2 green trees"] * 3


def clip(folder):
    """CLIP's byte-level pieces with an end-of-word mark."""
    model = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(CORPUS, trainer)
    trained = json.loads(model.to_str())["model"]
    letters = sorted(alphabet)
    pieces = letters + [letter + "</w>" for letter in letters]
    pieces += [piece for piece in trained["vocab"] if piece not in set(pieces)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    CLIPTokenizer(vocabulary, [tuple(m) for m in trained["merges"]]).save_pretrained(folder)
    return clip_config(BackboneConfig("clip"))


def siglip(folder):
    """SigLIP's SentencePiece file, which has no fast form."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_writer=file, vocab_size=90,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (folder / "trained.model").write_bytes(file.getvalue())
    SiglipTokenizer(str(folder / "trained.model")).save_pretrained(folder)
    (folder / "trained.model").unlink()
    return siglip_config(BackboneConfig())


def siglip2(folder, **stated):
    """SigLIP2's lower-casing Gemma pieces."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    model = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False)
    model.train_from_iterator(CORPUS, trainer)
    trained = json.loads(model.to_str())["model"]
    tokenizer = Siglip2Tokenizer(trained["vocab"], [tuple(m) for m in trained["merges"]], **stated)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)
    # As in the published folders, whose config says nothing of padding.
    raw = siglip_config(BackboneConfig())
    del raw["text_config"]["pad_token_id"]
    return raw


FAMILIES = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": lambda folder: siglip2(
        folder, padding_side="right", model_input_names=["input_ids"]
    ),
    "siglip2 as its class has it": siglip2,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [9, 64])
def test_ids_equal_transformers_for_every_family(family, length, tmp_path):
    raw = FAMILIES[family](tmp_path)
    write_json(tmp_path / "config.json", raw)
    recipe = dataclasses.replace(ImageRecipe(), size=64)
    write_json(tmp_path / "preprocessor_config.json", recipe_to_preprocessor(recipe))
    config, _ = read_backbone_config(tmp_path)
    assert not config.text.mask_padding
    ours = BackboneTokenizer(tmp_path, length, config.text.pad_token_id)(CAPTIONS)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))(
        [canonicalise(c) for c in CAPTIONS],
        padding="max_length", truncation=True, max_length=length,
    )["input_ids"]  # fmt: skip
    np.testing.assert_array_equal(ours, theirs)
    # A guard against a tokenizer that makes one unknown of everything and so equals itself.
    assert len({row.tobytes() for row in ours}) == len(CAPTIONS)
    assert len(np.unique(ours[0])) > 5
