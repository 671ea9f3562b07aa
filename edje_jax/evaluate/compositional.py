"""Scores of compositional items: every caption of an item against every image of it."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from edje_jax.config.model import ImageRecipe
from edje_jax.data.image_reader import in_order
from edje_jax.data.images import load_image, resize
from edje_jax.data.text import RECIPES
from edje_jax.evaluate.gallery import Progress
from edje_jax.evaluation.compositional import Item, Region, Scored
from edje_jax.evaluation.scores import add_cosines, cosines
from edje_jax.runtimes.base import Runtime

CHUNK = 256
"""Items whose images and tokens are in memory at once."""

Value = TypeVar("Value")


def score_items(
    runtime: Runtime,
    items: Sequence[Item],
    similarity_weight: float = 0.0,
    progress: Progress | None = None,
) -> list[Scored]:
    """Cosines, and match logits + similarity_weight * cosine, in the order of the items.

    Raises:
        BadImage: an image cannot be read; none is skipped, as a score would then be of other
            items than it says.
    """
    # Sorted, so that an image of many items is encoded about once.
    order = sorted(range(len(items)), key=lambda i: items[i].regions[0].path)
    scored: dict[int, Scored] = {}
    for start in range(0, len(order), CHUNK):
        part = order[start : start + CHUNK]
        found = _score(runtime, [items[i] for i in part], similarity_weight)
        scored.update(zip(part, found, strict=True))
        if progress:
            progress("items", len(scored), len(items))
    return [scored[i] for i in range(len(items))]


def _score(runtime: Runtime, items: Sequence[Item], weight: float) -> list[Scored]:
    # Each caption as it is read and each image once: two that are equal to the model tie exactly.
    read = RECIPES[runtime.config.text_recipe]
    regions = _numbered(region for item in items for region in item.regions)
    wordings = {read(text): text for item in items for text in item.captions}
    texts = _numbered(wordings)
    pixels = in_order(partial(_pixels, runtime.config.image), regions)
    encoded = runtime.encode_images(np.stack(list(pixels)))
    embeddings = runtime.embed_texts(list(wordings.values()))
    ids = runtime.joint_tokenizer(list(wordings.values()))
    grids = [
        np.meshgrid(
            [texts[read(text)] for text in item.captions],
            [regions[region] for region in item.regions],
            indexing="ij",
        )
        for item in items
    ]
    pairs, place = np.unique(
        np.concatenate([np.stack(grid).reshape(2, -1) for grid in grids], axis=1),
        axis=1,
        return_inverse=True,
    )
    similarities = cosines(embeddings, encoded.embeddings, *pairs)
    logits = runtime.score_pairs(ids, encoded.tokens, pairs[0], pairs[1], similarities)
    combined = add_cosines(logits, similarities, weight)
    ends = np.cumsum([grid[0].size for grid in grids])[:-1]
    rows = np.split(place.ravel(), ends)
    return [
        Scored(*(values[row].reshape(grid[0].shape) for values in (similarities, combined)))
        for row, grid in zip(rows, grids, strict=True)
    ]


def _pixels(recipe: ImageRecipe, region: Region) -> UInt8[np.ndarray, "s s 3"]:
    image = load_image(region.path, recipe)
    return resize(image.crop(region.box) if region.box else image, recipe)


def _numbered(values: Iterable[Value]) -> dict[Value, int]:
    """Number each different value, in the order of their first appearance."""
    return {value: i for i, value in enumerate(dict.fromkeys(values))}
