"""A small gallery with a made-up scorer that gains some queries and loses others."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from edje_jax.evaluation.retrieval import Gallery, Retrieval, rerank


class Case(NamedTuple):
    gallery: Gallery
    retrieval: Retrieval


@pytest.fixture
def make_case() -> Callable[..., Case]:
    def make(
        images: int = 40, per_image: int = 3, k: int = 10, weight: float = 0.0, seed: int = 0
    ) -> Case:
        rng = np.random.default_rng(seed)
        gallery = Gallery.of(
            [f"image {i}.jpg" for i in range(images)],
            [[f"caption {j} of {i}" for j in range(per_image)] for i in range(images)],
        )
        embeddings = unit(rng.normal(size=(images, 6)))
        texts = unit(
            embeddings[gallery.caption_image] + 0.5 * rng.normal(size=(len(gallery.captions), 6))
        )

        def score(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
            noise = np.random.default_rng(seed + 1).normal(size=len(text_index))
            return 1.5 * (gallery.caption_image[text_index] == image_index) + noise

        return Case(gallery, rerank(gallery, embeddings, texts, score, k, weight))

    return make


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
