"""Compositional sets, which ask whether a model reads more than a bag of words: SugarCrepe, ARO,
Winoground.

An item has one or two images and at least two captions; caption i describes image i, any further
one describes none. Where s(c, i) scores caption c against image i, an item is right in

    text   if for every image, its own caption scores above every other caption;
    image  if for every caption that has an image, its own image scores above every other image;
    group  if both (Winoground, arXiv 2204.03162, section 4.1).

A tie is wrong. Items with one image (SugarCrepe, arXiv 2306.14610; ARO, arXiv 2210.01936) have a
text score alone, which is their accuracy.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

STAGES = ("base", "reranked")


@dataclass(frozen=True)
class Region:
    """Image file, or a part of it: (left, upper, right, lower) in pixels."""

    path: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Item:
    """Images, and captions of which the first ones describe them one by one."""

    name: str
    category: str
    regions: tuple[Region, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scored:
    """Cosines and reranking scores of an item, each [captions, images]."""

    base: Float[np.ndarray, "c p"]
    reranked: Float[np.ndarray, "c p"]


def is_right(scores: Float[np.ndarray, "c p"]) -> dict[str, bool]:
    """Outcome of an item: {"text"} with one image, {"text", "image", "group"} with more.

    Raises:
        ValueError: a score is NaN.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; check the model's weights")
    images = scores.shape[1]
    own = np.diagonal(scores)
    others = ~np.eye(*scores.shape, dtype=bool)
    text = bool(np.all(~others | (own > scores)))
    if images == 1:
        return {"text": text}
    image = bool(np.all(~others[:images] | (own[:, None] > scores[:images])))
    return {"text": text, "image": image, "group": text and image}


def summarise(items: Sequence[Item], scored: Sequence[Scored]) -> dict[str, Any]:
    """Percentages of items that are right: {"items", "text": {"base", "reranked"}, ...}.

    "image" and "group" stand where every item has more than one image. Where there is more than one
    category, "categories" has the entries of each by its name, and "macro" their mean.
    """
    outcomes = [{stage: is_right(getattr(one, stage)) for stage in STAGES} for one in scored]
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


def _percentages(outcomes: Sequence[dict[str, dict[str, bool]]]) -> dict[str, Any]:
    """Percentages over some items; "image" and "group" only where all of them have it."""
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
