"""Captions -> token ids: one pinned recipe for the backbone, and two for the joint encoder."""

import html
import os
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from edje_jax.config.model import TextRecipe
from edje_jax.data.tokenizer import load_tokenizer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACES = re.compile(r"\s+")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def canonicalise(caption: str) -> str:
    """The published caption recipe: mended, unescaped, no punctuation, lower case, single spaces.

    Both towers see the canonical caption (published code: ftfy, HTML unescape,
    '_' to space, ASCII punctuation removed, lower case, white space collapsed).
    """
    text = _mended(caption).replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return _SPACES.sub(" ", text).strip()


def as_written(caption: str) -> str:
    """The caption with its casing and punctuation: mended, unescaped, single spaces."""
    return _SPACES.sub(" ", _mended(caption)).strip()


def _mended(caption: str) -> str:
    # Plain ASCII has nothing to mend or unescape, and mending takes most of the time.
    plain = caption.isascii() and caption.isprintable() and "&" not in caption
    return caption if plain else html.unescape(html.unescape(ftfy.fix_text(caption)))


RECIPES: dict[TextRecipe, Callable[[str], str]] = {
    "published": canonicalise,
    "as_written": as_written,
}
"""Text recipes of the joint encoder."""


class JointTokenizer:
    """[CLS] caption [SEP] for the joint encoder, from a folder with a BERT's tokenizer.

    A special token that a caption spells becomes an unknown one, as padding must be the tail of a
    row. It would not do to mend the text: XLM-RoBERTa's normalisation makes "<pad>" of look-alikes.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: it lacks one of BERT's special tokens.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        max_length: int,
        recipe: TextRecipe = "published",
    ):
        self.folder = Path(folder)
        self.max_length = max_length
        self.read = RECIPES[recipe]
        hub = load_tokenizer(folder, "bert")
        self.pad_id, self.cls_id, self.sep_id, self.mask_id, self.unk_id = (
            _special_id(hub, name, folder) for name in ("pad", "cls", "sep", "mask", "unk")
        )
        self.vocab_size = len(hub)
        self._tokenizer = hub.backend_tokenizer
        self._tokenizer.enable_truncation(max_length)
        self._tokenizer.no_padding()

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids that masked LM leaves alone."""
        return (self.pad_id, self.cls_id, self.sep_id, self.mask_id, self.unk_id)

    def __call__(
        self, captions: Sequence[str], length: int | None = None
    ) -> Int[np.ndarray, "n t"]:
        """int32 [N, length], padded; a caption past `max_length` is cut before its [SEP].

        `length` defaults to `max_length`; a shorter one must fit every caption.
        """
        encoded = self._tokenizer.encode_batch([self.read(caption) for caption in captions])
        rows = [self._without_spelt_tokens(encoding.ids) for encoding in encoded]
        return pad_rows(rows, length or self.max_length, self.pad_id)

    def _without_spelt_tokens(self, row: list[int]) -> list[int]:
        special = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
        if special.isdisjoint(row[1:-1]):
            return row
        caption = [self.unk_id if piece in special else piece for piece in row[1:-1]]
        return [row[0], *caption, row[-1]]

    def words(self, caption: str) -> list[tuple[str, list[int]]]:
        """Each word of the caption as it is read, and the places of its pieces in the row."""
        text = self.read(caption)
        encoding = self._tokenizer.encode(text)
        found: dict[int, tuple[list[tuple[int, int]], list[int]]] = {}
        for place, word in enumerate(encoding.word_ids):
            if word is not None:
                spans, places = found.setdefault(word, ([], []))
                spans.append(encoding.offsets[place])
                places.append(place)
        return [(text[spans[0][0] : spans[-1][1]], places) for spans, places in found.values()]


class BackboneTokenizer:
    """The backbone's own text recipe: canonical caption, padded to the tower's full length.

    SigLIP has no attention mask and pools its last position, so the padding matters. `pad_id`
    defaults to the tokenizer's own.
    """

    def __init__(self, folder: str | os.PathLike[str], length: int, pad_id: int | None = None):
        self.folder = Path(folder)
        self.length = length
        hub = load_tokenizer(folder)
        self.pad_id = _special_id(hub, "pad", folder) if pad_id is None else pad_id
        self.pad_left = hub.padding_side == "left"
        self.vocab_size = len(hub)
        # The library below transformers is faster; SentencePiece files have no such form.
        self._slow = None if hub.is_fast else hub
        self._fast = hub.backend_tokenizer if hub.is_fast else None
        if self._fast:
            self._fast.enable_truncation(length)
            self._fast.no_padding()

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "n l"]:
        """int32 [N, length]."""
        texts = [canonicalise(caption) for caption in captions]
        if self._fast:
            rows = [encoding.ids for encoding in self._fast.encode_batch(texts)]
        elif self._slow and texts:
            rows = self._slow(texts, truncation=True, max_length=self.length)["input_ids"]
        else:
            rows = []
        return pad_rows(rows, self.length, self.pad_id, self.pad_left)


def pad_rows(
    rows: Sequence[Sequence[int]], length: int, pad_id: int, left: bool = False
) -> Int[np.ndarray, "n t"]:
    """int32 [N, length], padded on the right or the left; every row must fit."""
    out = np.full((len(rows), length), pad_id, np.int32)
    for i, row in enumerate(rows):
        start = length - len(row) if left else 0
        out[i, start : start + len(row)] = row
    return out


def train_wordpiece(
    captions: Iterable[str],
    vocab_size: int,
    folder: str | os.PathLike[str],
    recipe: TextRecipe = "published",
) -> None:
    """Train a WordPiece on captions as a recipe has them; save it as a Hugging Face tokenizer.

    Its pieces are in lower case, but for captions as written. The special tokens are BERT's, [PAD]
    first, so that the pad id is 0 for either tower. The same captions give the same tokenizer,
    whatever their order.
    """
    from transformers import PreTrainedTokenizerFast

    read, lowercase = RECIPES[recipe], recipe == "published"
    blank = _bert_tokenizer({token: i for i, token in enumerate(_SPECIAL)}, lowercase)
    counts = Counter(w for caption in captions for w in _words(blank, read(caption)))
    # The trainer numbers the letters inside words as a hash table hands them out, and breaks ties
    # by those numbers: told beforehand, in order, they make it deterministic.
    inside = sorted({f"##{letter}" for word in counts for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*_SPECIAL, *inside], show_progress=False
    )
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(counts.elements(), trainer)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), _SPECIAL, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=_bert_tokenizer(trained.get_vocab(), lowercase),
        # Stated, because a SigLIP text tower takes no mask and readers go by this.
        model_input_names=["input_ids"],
        **{f"{name}_token": token for name, token in names.items()},
    ).save_pretrained(str(folder))


def _words(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    """Words into which a tokenizer splits a text before it looks for pieces."""
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def _bert_tokenizer(vocabulary: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """[CLS] text [SEP] in word pieces, split as BERT splits; without accents if in lower case."""
    out = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    out.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    out.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    out.decoder = decoders.WordPiece()
    out.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return out


def _special_id(hub, name: str, folder: str | os.PathLike[str]) -> int:
    value = getattr(hub, f"{name}_token_id")
    if value is None:
        raise ValueError(f"{folder}: this tokenizer has no {name} token, which EDJE needs")
    return int(value)
