"""The `karpathy:` source: Karpathy's splits of COCO and Flickr30k, one JSON with all of them.

    {"images": [{"filepath": "val2014", "filename": "1.jpg", "cocoid": 1, "split": "test",
                 "sentences": [{"raw": "two dogs"}, ...]}, ...]}

The files come from "Deep Visual-Semantic Alignments" (arXiv 1412.2306); `restval` is the part of
COCO's validation set that everyone trains with.
"""

import difflib
import json
import os
from collections import Counter
from typing import Any

from edje_jax.data.images import read_file
from edje_jax.data.sources.captioned import Captioned, packed
from edje_jax.data.sources.packed import PackedStrings

_EXAMPLE = '{"filename": "1.jpg", "split": "test", "sentences": [{"raw": "two dogs"}]}'


class Karpathy(Captioned):
    """The pictures of one split, relative to the JSON's folder or to `image_root`.

    "train" takes "restval" along. A picture's id is its "cocoid", else its "imgid", else its file.

    Raises:
        FileNotFoundError: no such JSON file.
        ValueError: no such split, or not such a file; the message names what is wrong.
    """

    def __init__(self, file: str, split: str, image_root: str = ""):
        file = os.path.expanduser(file)
        self.image_root = os.path.expanduser(image_root) or os.path.dirname(file)
        entries = _of_split(file, _read(file), split)
        ids, names, captions = [], [], []
        for number, entry in entries:
            where = f"{file}: image {number}"
            names.append(_name(where, entry))
            ids.append(str(entry.get("cocoid", entry.get("imgid", names[-1]))))
            captions.append(_captions(where, entry))
        _refuse_repeats(file, ids, names)
        self._names = PackedStrings(names)
        super().__init__(f"{file}#{split}", PackedStrings(ids), *packed(captions))

    def path(self, index: int) -> str:
        """Where the picture lies."""
        return os.path.join(self.image_root, self._names[self._checked(index)])

    def encoded(self, index: int) -> bytes:
        """The picture's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def place(self, index: int) -> str:
        """Its path."""
        return self.path(index)


def _read(file: str) -> list[Any]:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            images = json.load(stream)["images"]
        if isinstance(images, list):
            return images
        raise TypeError
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such file; karpathy: takes a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); is it whole?") from error
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{file}: no list "images" in it; expected {{"images": [{_EXAMPLE}, ...]}}. A list of '
            'pictures with "image" and "caption" is read by blip:'
        ) from error


def _of_split(file: str, entries: list[Any], split: str) -> list[tuple[int, dict[str, Any]]]:
    """(number in the file, entry) of those of a split."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
            raise ValueError(f'{file}: image {number}: no "split"; expected {_EXAMPLE}')
    there = Counter(entry["split"] for entry in entries)
    wanted = {"train", "restval"} if split == "train" else {split}
    if not wanted & there.keys():
        near = difflib.get_close_matches(split, there, n=1)
        guess = f'did you mean "#{near[0]}"? ' if near else ""
        listed = ", ".join(f"{name} ({count:,})" for name, count in there.items())
        raise ValueError(f'{file}: no split "{split}"; {guess}There are {listed or "none"}')
    return [(i, entry) for i, entry in enumerate(entries) if entry["split"] in wanted]


def _name(where: str, entry: dict[str, Any]) -> str:
    folder, name = entry.get("filepath") or "", entry.get("filename")
    if not isinstance(name, str) or not name or not isinstance(folder, str):
        raise ValueError(f'{where}: no "filename"; expected {_EXAMPLE}')
    return os.path.join(folder, name)


def _captions(where: str, entry: dict[str, Any]) -> list[str]:
    try:
        captions = [sentence["raw"] for sentence in entry["sentences"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f'{where}: no "sentences" with "raw"; expected {_EXAMPLE}') from error
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise ValueError(f'{where}: "sentences" holds no text or an empty one; correct or drop it')
    return captions


def _refuse_repeats(file: str, ids: list[str], names: list[str]) -> None:
    first: dict[str, str] = {}
    for image_id, name in zip(ids, names, strict=True):
        if image_id in first:
            raise ValueError(
                f'{file}: id "{image_id}" is given to {first[image_id]} and to {name}; correct one'
            )
        first[image_id] = name
