"""Tokenizers of Hugging Face folders: which files make one, loaded, copied, and the pad id."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path

from edje_jax.config.model import BertConfig
from edje_jax.system.files import first_line, read_json, write_json

log = logging.getLogger(__name__)

VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
"""Files that hold a vocabulary; a folder needs one of them."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",  # Of vocab.json
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)

_CLASSES = {"sentencepiece.bpe.model": "XLMRobertaTokenizer"}
"""File name of a vocabulary that only one class uses -> that class."""


def load_tokenizer(folder: str | os.PathLike[str], kind: str | None = None):
    """The Hugging Face tokenizer of a folder, in its fast form where there is one.

    `kind` is the model type to assume if the folder's files do not name a class. Without it the
    model type in its config.json decides, which in an EDJE model folder is another model's.

    Raises:
        FileNotFoundError: the folder holds no tokenizer, or half of one.
        ValueError: the files cannot be read, or are not those of the class that reads them.
    """
    # Imported late, as transformers takes seconds to import and many callers never tokenise.
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging as hub_logging

    folder = Path(folder)
    found = _vocabularies(folder)
    stated = {"tokenizer_class": tokenizer_class(folder)}
    assumed = {"config": AutoConfig.for_model(kind, **stated)} if kind else {}
    # It warns about the config.json beside the tokenizer, which belongs to another model.
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    remedy = 'name the class that reads it as "tokenizer_class" in tokenizer_config.json'
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **assumed)
    except Exception as error:
        raise ValueError(
            f"{folder}: no tokenizer can be made of {found} ({first_line(error)}); fetch the"
            f" folder again, or {remedy}"
        ) from error
    finally:
        hub_logging.set_verbosity(verbosity)
    # A class that finds none of its files makes a tokenizer of only its special tokens.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ValueError(
            f"{folder}: {type(tokenizer).__name__} finds no words in {found}; {remedy}"
        )
    return tokenizer


def tokenizer_class(folder: Path) -> str | None:
    """The class that reads a folder's tokenizer, if its files say so or leave one alone."""
    for name in ("tokenizer_config.json", "config.json"):
        stated = read_json(folder / name) if (folder / name).exists() else {}
        if stated.get("tokenizer_class"):
            return str(stated["tokenizer_class"])
    return next((kind for name, kind in _CLASSES.items() if (folder / name).exists()), None)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy every tokenizer file that a folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def copy_joint_tokenizer(source: Path, target: Path) -> None:
    """Copy a joint encoder's tokenizer to where no config.json of its own lies beside it.

    A class that only that file or the vocabulary's name implies is written to
    tokenizer_config.json.
    """
    copy_tokenizer(source, target)
    path, kind = target / "tokenizer_config.json", tokenizer_class(source)
    settings = read_json(path) if path.exists() else {}
    if kind and not settings.get("tokenizer_class"):
        write_json(path, settings | {"tokenizer_class": kind})


def same_tokenizer(a: Path, b: Path) -> bool:
    """Whether two folders hold the same tokenizer: the first vocabulary that both have decides."""
    shared = [n for n in VOCABULARIES if (a / n).exists() and (b / n).exists()]
    names = [*shared[:1], *(["merges.txt"] if shared[:1] == ["vocab.json"] else [])]
    return a == b or (
        bool(names) and all((a / n).read_bytes() == (b / n).read_bytes() for n in names)
    )


def padded_as_tokenized(config: BertConfig, folder: Path) -> BertConfig:
    """The config of a joint encoder with the pad id of its tokenizer.

    Captions are padded with the tokenizer's id. config.json often has BERT's 0 beside a tokenizer
    with another one, such as XLM-RoBERTa's: then padding would be read and `<s>` masked.
    """
    if not any((folder / name).exists() for name in VOCABULARIES):
        return config
    pad = load_tokenizer(folder, "bert").pad_token_id
    if pad is None or pad == config.pad_token_id:
        return config
    log.warning(
        "%s: config.json says pad_token_id %d, but the tokenizer pads with %d, which is taken",
        folder, config.pad_token_id, pad,
    )  # fmt: skip
    return dataclasses.replace(config, pad_token_id=int(pad))


def _vocabularies(folder: Path) -> str:
    """Names of the vocabularies that a folder has, for messages.

    Raises:
        FileNotFoundError: it has none, or half of one.
    """
    found = [name for name in VOCABULARIES if (folder / name).exists()]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no tokenizer here; looked for {', '.join(VOCABULARIES)}"
        )
    if found == ["vocab.json"] and not (folder / "merges.txt").exists():
        raise FileNotFoundError(
            f"{folder}: vocab.json is half a tokenizer; its merges.txt is missing, so fetch the"
            " folder again"
        )
    return ", ".join(found)
