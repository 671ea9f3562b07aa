"""The `blip:` source: a JSON list of pictures and captions, as BLIP's annotation files are.

    [{"image": "val2014/1.jpg", "caption": "two dogs", "image_id": "coco_1"}, ...]

"caption" is a string (training files) or a list of strings (evaluation files).
"""

import json
import os
import reprlib
from collections.abc import Iterator
from typing import Any

from edje_jax.data.images import read_file
from edje_jax.data.sources.captioned import Captioned, packed
from edje_jax.data.sources.packed import PackedStrings

_EXAMPLE = '{"image": "1.jpg", "caption": "two dogs"}'


class BlipJson(Captioned):
    """Pictures named by a JSON list, relative to its folder or to `image_root`.

    Entries with the same "image" or the same "image_id" are one picture with all their captions:
    it stands where the first of them does, and has that entry's file and id. Without "image_id" a
    picture's id is its "image" as written. Picture files are opened on reading only: one that is
    missing raises `BadImage` then.

    Raises:
        FileNotFoundError: no such JSON file.
        ValueError: it is not such a list; the message names the file, the entry and the remedy.
    """

    def __init__(self, path: str | os.PathLike[str], image_root: str | os.PathLike[str] = ""):
        file = os.path.expanduser(path)
        self.image_root = os.path.expanduser(image_root) or os.path.dirname(file)
        pictures = _merged(file, _read_list(file))
        self._images = PackedStrings(image for image, _, _ in pictures)
        ids = PackedStrings(image_id for _, image_id, _ in pictures)
        super().__init__(file, ids, *packed([captions for _, _, captions in pictures]))

    def path(self, index: int) -> str:
        """Where the picture lies."""
        return os.path.join(self.image_root, self._images[self._checked(index)])

    def encoded(self, index: int) -> bytes:
        """The picture's file; `BadImage` if it cannot be read."""
        return read_file(self.path(index))

    def place(self, index: int) -> str:
        """Its path."""
        return self.path(index)


def _read_list(path: str) -> list[Any]:
    if os.path.isdir(path):
        raise ValueError(f"{path}: a folder, not a JSON file; for its pictures use folder:{path}")
    try:
        with open(path, encoding="utf-8-sig") as file:
            entries = json.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file; blip: takes a JSON list") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}); "
            f"expected one list, [{_EXAMPLE}, ...]"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); save it as UTF-8 JSON") from error
    if not isinstance(entries, list):
        raise ValueError(
            f"{path}: holds a JSON {_kind(entries)}, not a list; expected [{_EXAMPLE}, ...]"
        )
    if not entries:
        raise ValueError(f"{path}: the list is empty; give at least one {_EXAMPLE}")
    return entries


def _merged(path: str, entries: list[Any]) -> list[tuple[str, str, list[str]]]:
    """(image, id, captions) of each picture, in order of first appearance."""
    pictures: list[tuple[str, str, list[str]]] = []
    by_image: dict[str, int] = {}
    by_id: dict[str, int] = {}
    for index, (image, image_id, captions) in enumerate(_checked_entries(path, entries)):
        rows = {row for row in (by_image.get(image), by_id.get(image_id)) if row is not None}
        if len(rows) == 2:
            raise ValueError(
                f'{path}: entry {index}: "{image}" and image_id "{image_id}" belong to two '
                "different pictures in earlier entries; correct one of them"
            )
        row = rows.pop() if rows else len(pictures)
        if row == len(pictures):
            pictures.append((image, image_id, []))
        by_image.setdefault(image, row)
        by_id.setdefault(image_id, row)
        pictures[row][2].extend(captions)
    return pictures


def _checked_entries(path: str, entries: list[Any]) -> Iterator[tuple[str, str, list[str]]]:
    for index, entry in enumerate(entries):
        try:
            image = _image(entry)
            yield image, _image_id(entry, image), _captions(entry)
        except ValueError as error:
            raise ValueError(f"{path}: entry {index}: {error}") from None


def _image(entry: Any) -> str:
    if not isinstance(entry, dict):
        raise ValueError(f"a {_kind(entry)}, not an object; expected {_EXAMPLE}")
    image = entry.get("image")
    url = image if isinstance(image, str) and "://" in image else entry.get("url")
    if url is not None and (image is None or image == url):
        raise ValueError(
            f"names a URL ({url}), not a file, and nothing is downloaded here; "
            f"download the pictures first and list them as {_EXAMPLE}. Lists of URLs, as BLIP's for"
            " pre-training are, img2dataset downloads into tars, which webdataset: reads"
        )
    if not isinstance(image, str) or not image:
        raise ValueError(f'"image" is {_shown(entry, "image")}; give a picture file: {_EXAMPLE}')
    return image


def _image_id(entry: dict[str, Any], image: str) -> str:
    image_id = entry.get("image_id")
    if image_id is None:
        return image
    if isinstance(image_id, bool) or not isinstance(image_id, str | int) or image_id == "":
        raise ValueError(
            f'"image_id" is {_shown(entry, "image_id")}; give a string or a whole number, or '
            "leave it out"
        )
    return str(image_id)


def _captions(entry: dict[str, Any]) -> list[str]:
    caption = entry.get("caption")
    captions = [caption] if isinstance(caption, str) else caption
    if not isinstance(captions, list) or not captions:
        raise ValueError(
            f'"caption" is {_shown(entry, "caption")}; give a string or a list of strings'
        )
    for text in captions:
        if not isinstance(text, str):
            raise ValueError(f'"caption" lists a {_kind(text)}: {text!r}; list strings only')
        if not text.strip():
            raise ValueError('"caption" holds an empty text; write one or drop the entry')
    return captions


def _shown(entry: dict[str, Any], key: str) -> str:
    # Shortened: a wrong value can be a whole file.
    return reprlib.repr(entry[key]) if key in entry else "missing"


def _kind(value: Any) -> str:
    """JSON's name for what `value` is."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
