"""Files of compositional sets: SugarCrepe, ARO, Winoground."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edje_jax.data.sources.texts import read_json, text_fault
from edje_jax.evaluation.compositional import Item, Region

CATEGORIES = ("category", "collapsed_tag", "relation_name", "attributes")
"""Fields that sort items; the second is Winoground's, the last two are ARO's."""


BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
"""Fields of the part of an image that ARO's caption describes; its evaluation crops to it."""


FORMS = (
    (("filename",), ("caption", "negative_caption")),
    (("image_path",), ("true_caption", "false_caption")),
    (("image_0", "image_1"), ("caption_0", "caption_1")),
)
"""Fields of images and captions: SugarCrepe's, ARO's, Winoground's."""


def read_items(files: Sequence[Path], image_root: str | None = None) -> list[Item]:
    """Items of JSON files (a list, or a dict of entries) or of .jsonl, one entry a line.

    Image paths are relative to `image_root`, or else to their file's folder. Items without a
    category of their own are sorted by file where there are several.

    Raises:
        FileNotFoundError: a file or an image is not there.
        ValueError: a file is no JSON, is empty, or has an entry of none of the three forms.
    """
    return [item for path in files for item in _read_file(path, image_root, len(files) > 1)]


def _read_file(path: Path, image_root: str | None, several: bool) -> Iterator[Item]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    root = Path(image_root or path.parent)
    content = read_json(str(path), "a list or dict of entries")
    if path.suffix == ".jsonl" and not isinstance(content, list):
        content = [content]  # One line
    if not isinstance(content, list | dict):
        raise ValueError(f"{path}: holds one {type(content).__name__}, no list or dict of entries")
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    empty = True
    for name, entry in entries:
        empty = False
        yield _item(f"{path.name}:{name}", entry, root, path.stem if several else "", path)
    if empty:
        raise ValueError(f"{path}: no items in it")


def _item(name: str, entry: Any, root: Path, category: str, path: Path) -> Item:
    if isinstance(entry, ValueError):  # A line that is no JSON
        raise ValueError(f"{path}: entry {name}: {entry}")
    for images, captions in FORMS:
        fields = (*images, *captions)
        if isinstance(entry, dict) and all(isinstance(entry.get(x), str) for x in fields):
            for field in fields:
                if fault := text_fault(entry[field]):
                    raise ValueError(f'{path}: entry {name}: "{field}" {fault}; correct it')
            box = _box(name, entry, path) if all(side in entry for side in BOX) else None
            return Item(
                name,
                _category(entry) or category,
                tuple(Region(_found(root / entry[x], path), box) for x in images),
                tuple(entry[x] for x in captions),
            )
    forms = "; ".join(", ".join((*a, *b)) for a, b in FORMS)
    raise ValueError(f"{path}: entry {name} has none of these sets of text fields: {forms}")


def _category(entry: dict[str, Any]) -> str:
    """Category of an entry, from the first field that has one; ARO's pairs become `white_black`."""
    value = next((entry[key] for key in CATEGORIES if entry.get(key)), "")
    return "_".join(map(str, value)) if isinstance(value, list) else str(value)


def _box(name: str, entry: dict[str, Any], path: Path) -> tuple[int, int, int, int]:
    values = [entry[side] for side in BOX]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise ValueError(f"{path}: entry {name} has {', '.join(BOX)} = {values}; give numbers")
    x, y, width, height = map(int, values)
    if width < 1 or height < 1:
        raise ValueError(f"{path}: entry {name} has an empty box of {width} x {height} pixels")
    return x, y, x + width, y + height


def _found(path: Path, file: Path) -> str:
    """Path of an image file; Winoground's names come without their extension."""
    for candidate in (path, *(path.with_name(path.name + end) for end in (".png", ".jpg"))):
        if os.path.isfile(candidate):
            return str(candidate)
    raise FileNotFoundError(
        f"{file}: image {path} is not there; name the folder of images with --image-root"
    )
