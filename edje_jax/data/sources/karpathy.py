"""The `karpathy:` source: Karpathy's splits of COCO and Flickr30k, one JSON with all of them.

    {"images": [{"filepath": "val2014", "filename": "1.jpg", "cocoid": 1, "split": "test",
                 "sentences": [{"raw": "two dogs"}, ...]}, ...]}

The files come from "Deep Visual-Semantic Alignments" (arXiv 1412.2306); `restval` is the part of
COCO's validation set that everyone trains with.
"""

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from edje_jax.data.images import read_file
from edje_jax.data.metadata import scalars
from edje_jax.data.sources.captioned import Captioned, pack_captions
from edje_jax.data.sources.packed import PackedMetadata, PackedStrings
from edje_jax.data.sources.texts import (
    path_fault,
    printable,
    read_json,
    refuse_if_none,
    text_fault,
    usable,
)
from edje_jax.data.stamps import file_stamp
from edje_jax.types import BadRecord, Scalar

_EXAMPLE = '{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "two dogs"}]}'


class Karpathy(Captioned):
    """The images of one split, relative to the JSON's folder or to `image_root`.

    "train" takes "restval" along. An image's id is its "cocoid", else its "imgid", else its file.
    An entry that names no image, or repeats an id, is left out (`bad`); a caption that is no
    text is dropped (`caption_faults`). Metadata are an entry's texts and numbers but "filename".

    Raises:
        FileNotFoundError: no such JSON file.
        ValueError: no such split, or not such a file; the message names what is wrong.
    """

    def __init__(self, file: str, split: str, image_root: str | None = None):
        file = os.path.expanduser(file)
        self.image_root = os.path.expanduser(image_root or os.path.dirname(file))
        entries, bad = _of_split(file, _read(file), split)
        names: dict[str, str] = {}
        captions: list[list[str]] = []
        metadata: list[Mapping[str, Scalar]] = []
        faults: dict[int, str] = {}
        for where, entry in entries:
            try:
                name = _name(entry)
                _refuse_repeat(names, image_id := _image_id(entry, name))
            except ValueError as error:
                bad.append(BadRecord(where, printable(str(error))))
                continue
            good, fault = _captions(entry)
            if fault:
                faults[len(names)] = f"{where}: {fault}"
            names[image_id] = name
            captions.append(good)
            metadata.append(scalars(entry, ("filename",)))
        refuse_if_none(file, len(names), bad)
        self._names = PackedStrings(names.values())
        self._metadata = PackedMetadata(metadata)
        super().__init__(
            f"{file}#{split}", PackedStrings(names), *pack_captions(captions), faults, bad
        )

    def path(self, index: int) -> str:
        """Path of the image's file."""
        return os.path.join(self.image_root, self._names[self._checked(index)])

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Texts and numbers of the image's entry, such as "split" and "cocoid"."""
        return self._metadata[self._checked(index)]

    def stamp(self, index: int) -> str:
        """The file's size and modification time."""
        return file_stamp(self.path(index))

    def encoded(self, index: int) -> bytes:
        """The image's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def describe(self, index: int) -> str:
        """Path of the image's file, for messages."""
        return self.path(index)


def _read(file: str) -> list[Any]:
    try:
        value = read_json(file, f'{{"images": [{_EXAMPLE}, ...]}}')
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such file; karpathy: takes a JSON file") from error
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        return value["images"]
    # The list alone, or JSON Lines of it, is as good.
    entries = value if isinstance(value, list) else [value]
    if any(map(_is_entry, entries)):
        return entries
    raise ValueError(
        f'{file}: no list "images" in it; expected {{"images": [{_EXAMPLE}, ...]}}. A list of '
        'images with "image" and "caption" is read by blip:'
    )


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and "split" in entry and "filename" in entry


def _of_split(
    file: str, entries: list[Any], split: str
) -> tuple[list[tuple[str, dict[str, Any]]], list[BadRecord]]:
    """([(file and number, entry) of those of a split], entries that are of none)."""
    of_split, bad, there = [], [], Counter()
    wanted = {"train", "restval"} if split == "train" else {split}
    for number, entry in enumerate(entries):
        where = f"{file}: image {number}"
        part = entry.get("split") if isinstance(entry, dict) else None
        if not isinstance(part, str):
            told = str(entry) if isinstance(entry, ValueError) else f'no "split"; use {_EXAMPLE}'
            bad.append(BadRecord(where, told))
            continue
        there[part] += 1
        if part in wanted:
            of_split.append((where, entry))
    if not of_split:
        near = difflib.get_close_matches(split, there, n=1)
        guess = f'did you mean "#{near[0]}"? ' if near else ""
        listed = ", ".join(f"{name} ({count:,})" for name, count in there.items())
        raise ValueError(
            f'{file}: no split "{split}"; {guess}There are {printable(listed) or "none"}'
            + "".join(f". {one.where}: {one.reason}" for one in bad[:1])
        )
    return of_split, bad


def _name(entry: dict[str, Any]) -> str:
    folder, name = entry.get("filepath") or "", entry.get("filename")
    if fault := path_fault(name) or (folder and path_fault(folder)):
        raise ValueError(f'"filename" or "filepath" {fault}; expected {_EXAMPLE}')
    return os.path.join(str(folder), str(name))


def _image_id(entry: dict[str, Any], name: str) -> str:
    for key in ("cocoid", "imgid"):
        value = entry.get(key)
        if isinstance(value, int | float):
            return str(value)
        if value is not None:
            if fault := text_fault(value):
                raise ValueError(f'"{key}" {fault}; give a number or a text, or leave it out')
            return value
    return name


def _refuse_repeat(names: dict[str, str], image_id: str) -> None:
    if image_id in names:
        raise ValueError(f'id "{image_id}" is given to {names[image_id]} too; correct one')


def _captions(entry: dict[str, Any]) -> tuple[list[str], str]:
    """(captions that can be used, what is wrong with the others)."""
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        return [], f'no "sentences" with "raw"; expected {_EXAMPLE}'
    return usable([one.get("raw") if isinstance(one, dict) else None for one in sentences])
