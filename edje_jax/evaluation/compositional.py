"""Sets that ask whether a model reads more than a bag of words: SugarCrepe, ARO, Winoground.

An item has one or two pictures and at least two captions; caption i describes picture i, any
further one describes none. Where s(c, p) scores caption c against picture p, an item is right in

    text   if for every picture, its own caption scores above every other caption;
    image  if for every caption that has a picture, its own scores above every other picture;
    group  if both (Winoground, arXiv 2204.03162, section 4.1).

A tie is wrong. Items with one picture (SugarCrepe, arXiv 2306.14610; ARO, arXiv 2210.01936) have a
text score alone, which is their accuracy.
"""

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.markup import escape
from rich.table import Table

from edje_jax.data.sources.texts import read_json, text_fault
from edje_jax.evaluation.report import replacing, write_json

STAGES = ("base", "reranked")
CATEGORIES = ("category", "collapsed_tag", "relation_name", "attributes")
"""Fields that sort items; the second is Winoground's, the last two are ARO's."""
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
"""ARO's part of a picture that a caption is about: its evaluation crops to it."""
FORMS = (
    (("filename",), ("caption", "negative_caption")),
    (("image_path",), ("true_caption", "false_caption")),
    (("image_0", "image_1"), ("caption_0", "caption_1")),
)
"""Fields of pictures and captions: SugarCrepe's, ARO's, Winoground's."""
SHOWN = 30
"""Categories that the table has room for; compositional.json has all."""


@dataclass(frozen=True)
class Picture:
    """A file, or a part of it (left, upper, right, lower) in pixels."""

    path: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Item:
    """Pictures, and captions of which the first ones describe them one by one."""

    name: str
    category: str
    pictures: tuple[Picture, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scored:
    """Cosines and reranking scores of an item, each [captions, pictures]."""

    base: Float[np.ndarray, "c p"]
    reranked: Float[np.ndarray, "c p"]


def read_items(files: Sequence[Path], image_root: str = "") -> list[Item]:
    """Items of JSON files (a list, or a dict of entries) or of .jsonl, one entry a line.

    Pictures are relative to `image_root`, or else to their file's folder. Items without a category
    of their own are sorted by file where there are several.

    Raises:
        FileNotFoundError: a file or a picture is not there.
        ValueError: a file is no JSON, is empty, or has an entry of none of the three forms.
    """
    return [item for path in files for item in _read_file(path, image_root, len(files) > 1)]


def right(scores: Float[np.ndarray, "c p"]) -> dict[str, bool]:
    """{"text"} of an item with one picture, {"text", "image", "group"} of one with more.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; check the model's weights")
    pictures = scores.shape[1]
    own = np.diagonal(scores)
    others = ~np.eye(*scores.shape, dtype=bool)
    text = bool(np.all(~others | (own > scores)))
    if pictures == 1:
        return {"text": text}
    image = bool(np.all(~others[:pictures] | (own[:, None] > scores[:pictures])))
    return {"text": text, "image": image, "group": text and image}


def summarise(items: Sequence[Item], scored: Sequence[Scored]) -> dict[str, Any]:
    """{"items", "text": {"base", "reranked"}, ..., "categories": {name: the same}, "macro"}.

    In percent; "macro" is the mean over categories. "image" and "group" stand where every item has
    more than one picture; "categories" and "macro" where there is more than one category.
    """
    outcomes = [{stage: right(getattr(one, stage)) for stage in STAGES} for one in scored]
    groups = defaultdict(list)
    for item, outcome in zip(items, outcomes, strict=True):
        groups[item.category].append(outcome)
    result = _percentages(outcomes)
    if len(groups) > 1:
        categories = {name: _percentages(groups[name]) for name in sorted(groups)}
        result["categories"] = categories
        result["macro"] = {
            kind: {
                stage: float(np.mean([one[kind][stage] for one in categories.values()]))
                for stage in STAGES
            }
            for kind in result
            if all(kind in one for one in categories.values()) and kind not in ("items",)
        }
    return result


def compositional_table(result: dict[str, Any]) -> Table:
    """Base beside reranked: over all items, over categories, and of each category."""
    kinds = [kind for kind in ("text", "image", "group") if kind in result]
    out = Table(title="Compositional, base and reranked (percent)", title_justify="left")
    for name in ("", "items", *(f"{kind} {stage}" for kind in kinds for stage in STAGES)):
        out.add_column(name, justify="right" if name else "left")
    categories = result.get("categories", {})
    rows = [("all", result)]
    if categories:
        rows.append(("mean of categories", {**result["macro"], "items": len(categories)}))
    rows += list(categories.items())[:SHOWN]
    for number, (name, one) in enumerate(rows):
        values = (
            f"{one[kind][stage]:.2f}" if kind in one else "" for kind in kinds for stage in STAGES
        )
        last = number == min(len(rows), 2) - 1
        out.add_row(escape(name), f"{one['items']:,}", *values, end_section=last)
    if len(categories) > SHOWN:
        out.caption = f"and {len(categories) - SHOWN} more categories in compositional.json"
    return out


def write_compositional(
    out: Path,
    items: Sequence[Item],
    scored: Sequence[Scored],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write `per_item.csv` and `compositional.json`; return what the latter says.

    Raises:
        OSError: a file cannot be written; none is left half-written.
    """
    metrics = {**about, **summarise(items, scored)}
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "per_item.csv") as file:
        rows = csv.writer(file)
        kinds = ("text", "image", "group")
        names = [f"{stage}_{kind}" for stage in STAGES for kind in kinds]
        rows.writerow(("item", "category", *names, "base_scores", "reranked_scores"))
        for item, one in zip(items, scored, strict=True):
            told = {stage: right(getattr(one, stage)) for stage in STAGES}
            flags = [
                int(told[stage][kind]) if kind in told[stage] else ""
                for stage in STAGES
                for kind in kinds
            ]
            scores = [json.dumps(getattr(one, stage).tolist()) for stage in STAGES]
            rows.writerow((item.name, item.category, *flags, *scores))
    write_json(out / "compositional.json", metrics)
    return metrics


def _percentages(outcomes: Sequence[dict[str, dict[str, bool]]]) -> dict[str, Any]:
    kinds = [
        kind
        for kind in ("text", "image", "group")
        if all(kind in outcome["base"] for outcome in outcomes)
    ]
    share = {
        kind: {
            stage: 100.0 * float(np.mean([outcome[stage][kind] for outcome in outcomes]))
            for stage in STAGES
        }
        for kind in kinds
    }
    return {"items": len(outcomes), **share}


def _read_file(path: Path, image_root: str, several: bool) -> Iterator[Item]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    root = Path(image_root) if image_root else path.parent
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
    for pictures, captions in FORMS:
        fields = (*pictures, *captions)
        if isinstance(entry, dict) and all(isinstance(entry.get(x), str) for x in fields):
            for field in fields:
                if fault := text_fault(entry[field]):
                    raise ValueError(f'{path}: entry {name}: "{field}" {fault}; correct it')
            box = _box(name, entry, path) if all(side in entry for side in BOX) else None
            return Item(
                name,
                _category(entry) or category,
                tuple(Picture(_found(root / entry[x], path), box) for x in pictures),
                tuple(entry[x] for x in captions),
            )
    forms = "; ".join(", ".join((*a, *b)) for a, b in FORMS)
    raise ValueError(f"{path}: entry {name} has none of these sets of text fields: {forms}")


def _category(entry: dict[str, Any]) -> str:
    """Of the first field that has one; two attributes are named as ARO does, `white_black`."""
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
    """The picture's path; Winoground's names come without their extension."""
    for candidate in (path, *(path.with_name(path.name + end) for end in (".png", ".jpg"))):
        if os.path.isfile(candidate):
            return str(candidate)
    raise FileNotFoundError(
        f"{file}: picture {path} is not there; name the folder of pictures with --image-root"
    )
