"""Recalls of a first stage alone, by embeddings and by codes."""

import numpy as np

from edje_jax.evaluate.gallery import EncodedGallery
from edje_jax.evaluation.measures import recall_at
from edje_jax.evaluation.retrieval import base_ranking
from edje_jax.runtimes.base import Embedded

DEPTHS = (1, 10, 50, 100, 200)
"""Depths of the recalls that are reported."""


def recalls_of_embeddings(encoded: EncodedGallery, texts: Embedded) -> dict[str, dict[str, float]]:
    """{"t2i": {"R@1", ...}, "i2t"}: percent, of cosines."""
    return _recalls(encoded, texts.embeddings, encoded.embeddings)


def recalls_of_codes(
    encoded: EncodedGallery, texts: Embedded, bits: int
) -> dict[str, dict[str, float]]:
    """As `recalls_of_embeddings`, of Hamming distances between codes of `bits` bits."""
    signs = (
        np.where(side[:, :bits] > 0, 1, -1).astype(np.float32)
        for side in (texts.projections, encoded.projections)
    )
    return _recalls(encoded, *signs)


def _recalls(
    encoded: EncodedGallery, texts: np.ndarray, images: np.ndarray
) -> dict[str, dict[str, float]]:
    owner, own = encoded.gallery.caption_image, np.arange(len(images), dtype=np.int32)
    ranks = {
        "t2i": base_ranking(texts, images, owner, own, 1).rank,
        "i2t": base_ranking(images, texts, own, owner, 1).rank,
    }
    return {
        direction: {f"R@{k}": recall_at(k).of(each) for k in DEPTHS}
        for direction, each in ranks.items()
    }
