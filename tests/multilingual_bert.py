"""Small random folders of the form of the public multilingual MiniLMs.

Those are BERTs with the tokenizer of XLM-RoBERTa (`<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3, `<mask>`
last), a word table that has more rows than the tokenizer has pieces, and a config.json that says
`pad_token_id` 0. Microsoft's has the pieces in `sentencepiece.bpe.model` alone and the masked-LM
head; that of sentence-transformers has a `tokenizer.json` that cuts and pads, and no head.
"""

import io
import json
from pathlib import Path
from typing import Literal

import sentencepiece
import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertForMaskedLM

from edje_jax.data.tokenizer import load_tokenizer
from tests.models.test_against_transformers import randomise

Form = Literal["microsoft", "sentence-transformers"]
FORMS: tuple[Form, ...] = ("microsoft", "sentence-transformers")
PIECES = "sentencepiece.bpe.model"
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "attn_implementation": "eager",
}
SENTENCES = [
    "Two dogs run on the beach, happily!",
    "Ein Mann fährt mit dem Fahrrad durch Zürich; es regnet.",
    "Un café crème à côté d'une île déserte?",
    "Две собаки бегут по пляжу. Кошка сидит на окне!",
    "两只狗在海滩上奔跑。猫坐在窗台上!",
    "東京タワーの前で写真を撮る人々",
    "كلبان يركضان على الشاطئ، وقطة تنام.",
    "😀 a SMILE 👨‍👩‍👧 and ﬁsh, \uff46\uff55\uff4c\uff4c width",
    "𐍈 unseen letters: Ω ञ",
    "",
]


def write_tokenizer(folder: Path, form: Form) -> None:
    """Pieces trained on the sentences, in XLM-RoBERTa's numbering."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES[:7] * 20), model_writer=file, vocab_size=200,
        hard_vocab_limit=False, minloglevel=2, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    )  # fmt: skip
    (folder / PIECES).write_bytes(file.getvalue())
    if form == "sentence-transformers":
        load_tokenizer(folder, "bert").save_pretrained(folder)
        (folder / PIECES).unlink()
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
        made.enable_truncation(16)
        made.enable_padding(pad_id=1, pad_token="<pad>")
        made.save(str(folder / "tokenizer.json"))


def write_bert(folder: Path, form: Form) -> BertForMaskedLM:
    """Write a folder of random weights, and return transformers' model of them."""
    write_tokenizer(folder, form)
    pieces = len(load_tokenizer(folder, "bert"))
    config = BertConfig(vocab_size=pieces + 35, **SHAPE)
    model = BertForMaskedLM(config)
    randomise(model)
    (model if form == "microsoft" else model.bert).save_pretrained(folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | {"pad_token_id": 0}
    if form == "microsoft":
        raw["tokenizer_class"] = "XLMRobertaTokenizer"
    path.write_text(json.dumps(raw))
    # Padding's row counts here too: to read it by mistake makes a difference.
    assert model.bert.embeddings.word_embeddings.weight[1].abs().min() > 0
    return model.eval()


def pooler(model: BertForMaskedLM) -> torch.nn.Linear:
    """Dense layer of a `BertModel`'s pooler, which is its tanh over the first row."""
    width = model.config.hidden_size
    made = torch.nn.Linear(width, width)
    randomise(made, seed=1)
    return made
