"""Batches of stored embeddings, for training heads on a frozen backbone."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int

from edje_jax.data.loader import endless_order, identities, part_of
from edje_jax.data.text import canonicalise
from edje_jax.index.store import Store
from edje_jax.models.token_formats import unpack
from edje_jax.training.teacher_scores import TeacherScores
from edje_jax.types import Source


class Candidates(NamedTuple):
    """Candidates of some queries, as the backbone embeds them, and the teacher's scores."""

    embeddings: Float32[Any, "r c e"]
    pooled: Float32[Any, "r c d"] | None
    """Mean of the compressed tokens of images, where the heads read them."""
    scores: Float32[Any, "r c"]
    usable: Bool[Any, "r c"]


class EmbeddedPairs(NamedTuple):
    """Images, each with one of its captions, as the backbone embeds them."""

    images: Float32[Any, "b e"]
    pooled: Float32[Any, "b d"] | None
    """Mean of the compressed tokens of the images, where the heads read them."""
    texts: Float32[Any, "b e"]
    image_ids: Int[Any, " b"]
    """Equal for rows that show the same image."""
    caption_ids: Int[Any, " b"]
    """Equal for rows with the same canonical caption."""
    valid: Bool[Any, " b"]


class Taught(NamedTuple):
    """Candidates of every `teacher_stride`-th pair of a batch."""

    images: Candidates
    """Images for the captions."""
    captions: Candidates
    """Captions for the images."""


class EmbeddingBatch(NamedTuple):
    """Input of a training step of the heads."""

    pairs: EmbeddedPairs
    """All pairs of the batch, on every process."""
    taught: Taught | None = None
    """This process's share of what the teacher scored; None without a teacher."""


def pooled_tokens(store: Store) -> Float32[np.ndarray, "n d"]:
    """Mean compressed token of every image of an index."""
    means = np.empty((len(store), store.manifest.width), np.float32)
    for start in range(0, len(store), 1024):
        rows = np.arange(start, min(start + 1024, len(store)))
        means[rows] = np.asarray(unpack(store.tokens(rows)), np.float32).mean(axis=1)
    return means


@dataclass(frozen=True)
class EmbeddingBatches:
    """Random access to the batches of a run over an index of its training set.

    An epoch visits every image that has a caption once, with one of them drawn at random: a
    function of (index, seed, t).
    """

    source: Source
    """The training set, as the loop counts its bad records."""
    store: Store
    batch_size: int
    seed: int
    steps: int
    pooled: Float32[np.ndarray, "n d"] | None = None
    """Mean compressed token of every image, where the heads read them."""
    teacher: TeacherScores | None = None
    teacher_stride: int = 1
    process: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[EmbeddingBatch, dict[str, str]]:
        first = index * self.batch_size
        rows = [self._row(position) for position in range(first, first + self.batch_size)]
        images, captions = (np.array(each, np.int64) for each in zip(*rows, strict=True))
        pairs = EmbeddedPairs(
            self.store.embeddings[images],
            self._pooled(images),
            self.store.caption_embeddings[captions],
            self._image_ids[images],
            self._caption_ids[captions],
            np.ones(len(images), bool),
        )
        if self.teacher is None:
            return EmbeddingBatch(pairs), {}
        captions, images = captions[:: self.teacher_stride], images[:: self.teacher_stride]
        own = part_of(len(images), self.process)
        taught = Taught(
            self._candidates("t2i", captions[own]), self._candidates("i2t", images[own])
        )
        return EmbeddingBatch(pairs, taught), {}

    def _row(self, position: int) -> tuple[int, int]:
        """(image, caption) at a position of the endless shuffled stream."""
        epoch, _ = divmod(position, len(self._images))
        image = int(self._images[endless_order(len(self._images), self.seed)[position]])
        start, stop = self._first_caption[image : image + 2]
        pick = np.random.default_rng([self.seed, epoch, image])
        return image, int(pick.integers(start, stop))

    def _candidates(self, direction: str, queries: Int[np.ndarray, " r"]) -> Candidates:
        assert self.teacher is not None
        found = getattr(self.teacher, direction)
        items, usable = found.candidates[queries], found.candidates[queries] >= 0
        flat = np.maximum(items, 0).reshape(-1)
        column = self.store.embeddings if direction == "t2i" else self.store.caption_embeddings
        pooled = self._pooled(flat) if direction == "t2i" else None
        return Candidates(
            column[flat].reshape(*items.shape, -1),
            None if pooled is None else pooled.reshape(*items.shape, -1),
            found.scores[queries],
            usable,
        )

    def _pooled(self, images: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n d"] | None:
        """Mean compressed token of some images, where the heads read them."""
        return None if self.pooled is None else self.pooled[images]

    @cached_property
    def _first_caption(self) -> Int[np.ndarray, " n1"]:
        """Number of each image's first caption, and that of all captions."""
        counts = [len(self.store.row(image).captions) for image in range(len(self.store))]
        return np.cumsum([0, *counts])

    @cached_property
    def _image_ids(self) -> Int[np.ndarray, " n"]:
        """Equal for rows that show the same image."""
        return identities(self.store.row(image).id for image in range(len(self.store)))

    @cached_property
    def _caption_ids(self) -> Int[np.ndarray, " t"]:
        """Equal for captions with the same canonical form."""
        return identities(canonicalise(text) for _, text in self.store.captions)

    @cached_property
    def _images(self) -> Int[np.ndarray, " n"]:
        """Images that have a caption."""
        return np.flatnonzero(np.diff(self._first_caption))
