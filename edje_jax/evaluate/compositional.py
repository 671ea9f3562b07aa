"""Scores of compositional items: every caption of an item against every picture of it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from edje_jax.data.images import load_image, resize
from edje_jax.data.text import canonicalise
from edje_jax.evaluate.gallery import Progress
from edje_jax.evaluation.compositional import Item, Picture, Scored
from edje_jax.evaluation.scores import cosines, mixed
from edje_jax.runtimes.base import Runtime

CHUNK = 256
"""Items whose pictures and tokens are in memory at once."""


def score_items(
    runtime: Runtime,
    items: Sequence[Item],
    similarity_weight: float = 0.0,
    progress: Progress | None = None,
) -> list[Scored]:
    """Cosines, and match logits + similarity_weight * cosine, in the order of the items.

    Raises:
        BadImage: a picture cannot be read; none is skipped, as a score would then be of other
            items than it says.
    """
    # Sorted, so that a picture of many items is encoded about once.
    order = sorted(range(len(items)), key=lambda i: items[i].pictures[0].path)
    scored: dict[int, Scored] = {}
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(order), CHUNK):
            part = order[start : start + CHUNK]
            found = _score(runtime, [items[i] for i in part], similarity_weight, pool)
            scored.update(zip(part, found, strict=True))
            if progress:
                progress("items", len(scored), len(items))
    return [scored[i] for i in range(len(items))]


def _score(
    runtime: Runtime, items: Sequence[Item], weight: float, pool: ThreadPoolExecutor
) -> list[Scored]:
    # Each canonical caption and each picture once: two that are equal to the model tie exactly.
    pictures = _numbered(picture for item in items for picture in item.pictures)
    texts = _numbered(canonicalise(text) for item in items for text in item.captions)
    pixels = pool.map(lambda picture: _pixels(runtime, picture), pictures)
    encoded = runtime.encode_images(np.stack(list(pixels)))
    embeddings = runtime.embed_texts(list(texts))
    ids = runtime.joint_tokenizer(list(texts))
    grids = [
        np.meshgrid(
            [texts[canonicalise(text)] for text in item.captions],
            [pictures[picture] for picture in item.pictures],
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
    combined = mixed(logits, similarities, weight)
    ends = np.cumsum([grid[0].size for grid in grids])[:-1]
    rows = np.split(place.ravel(), ends)
    return [
        Scored(*(values[row].reshape(grid[0].shape) for values in (similarities, combined)))
        for row, grid in zip(rows, grids, strict=True)
    ]


def _pixels(runtime: Runtime, picture: Picture) -> np.ndarray:
    image = load_image(picture.path, runtime.config.image)
    return resize(image.crop(picture.box) if picture.box else image, runtime.config.image)


def _numbered(values) -> dict:
    return {value: i for i, value in enumerate(dict.fromkeys(values))}
