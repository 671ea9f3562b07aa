"""Labels of images, for measures by category: COCO's instances, or a file for any set.

COCO's instances_val2014.json lists images, objects and categories; a crowd of a category counts as
the category. A labels file for any SPEC names the labels of each image by the image's id there, as
one object or as JSON Lines:

    {"dogs/1.jpg": ["dog", "grass"], "2.jpg": []}

    {"id": "dogs/1.jpg", "labels": ["dog", "grass"]}
    {"id": "2.jpg", "labels": []}
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Bool

from edje_jax.data.sources.texts import json_kind, read_json, shown, text_fault

_EXAMPLE = '{"1.jpg": ["dog", "grass"], ...}, or a line {"id": "1.jpg", "labels": ["dog"]} an image'

Key = str | int
"""Name of an image in a file: its id in a SPEC, or COCO's number."""


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """Labels of N images, and how well their file fitted."""

    names: list[str]
    """Names of the C labels, sorted: all that the images have."""
    values: Bool[np.ndarray, "n c"]
    """Whether each image has each label."""
    missing: int
    """Images that the file does not have; they have no label."""
    unknown: int
    """Images of the file that were not asked for."""

    @property
    def unlabelled(self) -> int:
        """Images without any label, with those that the file does not have."""
        return int((~self.values.any(axis=1)).sum())


def read_labels(path: str | os.PathLike[str], image_ids: Sequence[str]) -> ImageLabels:
    """Read the labels of some images, by their ids in a source, from a file of either kind.

    Images of COCO are found by their file's name, with or without folder and ending, or by the
    number at its end: "391895" and "val2014/COCO_val2014_000000391895.jpg" are one image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of neither kind, an entry is damaged, or it has none of the images; the
            message names the file, the value and the remedy.
    """
    path = os.fspath(path)
    try:
        content = read_json(path, _EXAMPLE)
    except FileNotFoundError as error:
        told = f"{path}: no such file; give COCO's instances JSON or {_EXAMPLE}"
        raise FileNotFoundError(told) from error
    is_coco = isinstance(content, dict) and isinstance(content.get("annotations"), list)
    given, find = _of_coco(path, content) if is_coco else (_of_any_set(path, content), str)
    keys = [find(one) for one in image_ids]
    found = [None if key is None else given.get(key) for key in keys]
    missing = sum(labels is None for labels in found)
    if missing == len(found):
        their, our = next(iter(given), None), next(iter(image_ids), None)
        raise ValueError(
            f"{path}: none of its {len(given):,} images (such as {shown(their)}) is one "
            f"of the {len(found):,} of this set (such as {shown(our)}); name images by their ids"
        )
    names = sorted({name for labels in found for name in labels or ()})
    column = {name: i for i, name in enumerate(names)}
    values = np.zeros((len(found), len(names)), bool)
    for row, labels in zip(values, found, strict=True):
        row[[column[name] for name in labels or ()]] = True
    return ImageLabels(names, values, missing, len(given.keys() - set(keys)))


def coco_number(name: str) -> int | None:
    """COCO's number of an image, at the end of its file's name or of its id; None without one."""
    digits = re.search(r"(?<!\d)\d{1,18}$", PurePosixPath(name).stem)
    return int(digits[0]) if digits else None


def _of_coco(
    path: str, content: dict[str, Any]
) -> tuple[dict[Key, set[str]], Callable[[str], Key | None]]:
    """({number of an image: its labels}, function from an id in a source to that number)."""
    names = dict(_fields(path, content, "categories", ("id", "name")))
    files = dict(_fields(path, content, "images", ("id", "file_name")))
    given: dict[Key, set[str]] = {number: set() for number in files}
    objects = _fields(path, content, "annotations", ("image_id", "category_id"))
    for i, (image, category) in enumerate(objects):
        if image not in given or category not in names:
            raise ValueError(
                f"{path}: annotations[{i}] is of image {shown(image)} and category "
                f'{shown(category)}; "images" and "categories" must list both'
            )
        given[image].add(str(names[category]))
    return given, _finder({str(file): number for number, file in files.items()})


def _fields(
    path: str, content: dict[str, Any], section: str, fields: tuple[str, str]
) -> Iterator[tuple[Key, Key]]:
    """Values of two fields of every entry in one of COCO's lists."""
    entries = content.get(section)
    if not isinstance(entries, list):
        raise ValueError(
            f'{path}: it has annotations and no list "{section}"; give COCO\'s instances JSON, such'
            " as instances_val2014.json"
        )
    for i, entry in enumerate(entries):
        values = entry if isinstance(entry, dict) else {}
        first, second = (values.get(name) for name in fields)
        if not isinstance(first, Key) or not isinstance(second, Key):
            needed = " and ".join(f'"{name}"' for name in fields)
            raise ValueError(f"{path}: {section}[{i}] is {shown(entry)}; it needs {needed}")
        yield first, second


def _finder(files: dict[str, Key]) -> Callable[[str], Key | None]:
    """Function from an image's id in a source to its number in COCO, None for another's image."""
    stems = Counter(PurePosixPath(file).stem for file in files)
    by_stem = {PurePosixPath(file).stem: number for file, number in files.items()}
    # Of files in COCO's format that are not COCO's, numbers may have nothing to do with names.
    numbers = {number for file, number in files.items() if coco_number(file) == number}

    def find(image_id: str) -> Key | None:
        stem, number = PurePosixPath(image_id).stem, coco_number(image_id)
        if image_id in files:
            return files[image_id]
        if stems[stem] == 1:
            return by_stem[stem]
        return number if number in numbers else None

    return find


def _of_any_set(path: str, content: Any) -> dict[Key, list[str]]:
    """{id of an image: its labels}."""
    if isinstance(content, dict) and isinstance(content.get("id"), Key):
        content = [content]  # JSON Lines of one line
    if not isinstance(content, dict | list):
        raise ValueError(f"{path}: holds a JSON {json_kind(content)}; expected {_EXAMPLE}")
    given: dict[Key, list[str]] = {}
    for name, labels in content.items() if isinstance(content, dict) else _lines(path, content):
        if name in given:
            raise ValueError(f'{path}: id "{name}" stands twice; put its labels into one entry')
        told = f"{path}: the labels of {shown(name)}"
        if not isinstance(labels, list):
            raise ValueError(f"{told} are {shown(labels)}; give a list of names, [] for none")
        if fault := next(filter(None, map(text_fault, labels)), ""):
            raise ValueError(f"{told}: one {fault}; give names alone")
        given[name] = labels
    return given


def _lines(path: str, entries: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """(id, labels) of every entry of a list."""
    for i, entry in enumerate(entries):
        if isinstance(entry, ValueError):  # A line that is no JSON
            raise ValueError(f"{path}: entry {i}: {entry}; expected {_EXAMPLE}")
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), Key):
            raise ValueError(f'{path}: entry {i} is {shown(entry)}; it needs "id" and "labels"')
        yield str(entry["id"]), entry.get("labels")
