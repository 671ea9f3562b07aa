"""Rankings and recalls of a gallery by a first stage that is named, such as codes of 64 bits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.evaluate.gallery import EncodedGallery
from edje_jax.evaluation.ranks import best_positive
from edje_jax.evaluation.retrieval import DIRECTIONS, BaseRanking
from edje_jax.evaluation.similarities import inner_products
from edje_jax.evaluation.tied_ranks import DEPTHS, ExpectedRecalls, first_stage_recalls
from edje_jax.first_stage.packing import pack
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage
from edje_jax.first_stage.screening import PLAIN, Screening, Searched
from edje_jax.runtimes.base import Embedded

QUERIES = 256
"""Queries whose candidates are searched together: bounds the similarities that are held."""


@dataclass(frozen=True)
class StageChoice:
    """First stage of an evaluation."""

    name: str = "exact"
    bits: int | None = None
    """Length of codes, for a first stage that reads these (default: the longest)."""
    screening: Screening = PLAIN
    """Numbers of candidates that codes go through; none are rescored where none is given."""

    @classmethod
    def named(cls, label: str) -> "StageChoice":
        """First stage by its name, with or without a length of codes: "exact", "codes-64".

        Raises:
            ValueError: no first stage has that name.
        """
        name, _, bits = label.rpartition("-")
        if label not in FIRST_STAGES and name in FIRST_STAGES and bits.isdecimal():
            return cls(name, int(bits))
        find_first_stage(label)
        return cls(label)

    @property
    def label(self) -> str:
        """Name, with the length of codes where there is one: "codes-64"."""
        return f"{self.name}-{self.bits}" if self.bits else self.name

    @property
    def reads_codes(self) -> bool:
        """Whether the first stage compares codes."""
        return find_first_stage(self.name).reads == "codes"

    def resolved(self, lengths: Sequence[int]) -> "StageChoice":
        """Choice for a model whose codes have these lengths: the longest, if none is given.

        Raises:
            ValueError: no first stage has that name, or the model has no codes, or none so long.
        """
        if not self.reads_codes:
            if self.bits is not None:
                raise ValueError(f"first stage {self.label}: {self.name} compares no codes")
            return self
        if not lengths:
            raise ValueError(
                f"first stage {self.label}: the model has no codes; train heads for it with edje"
                " train first_stage --init MODEL"
            )
        if self.bits is not None and self.bits not in lengths:
            listed = ", ".join(map(str, lengths))
            raise ValueError(f"first stage {self.label}: the model's codes have {listed} bits")
        return StageChoice(self.name, self.bits or max(lengths), self.screening)

    def bytes_per_image(self, width: int) -> int:
        """Bytes of what the first stage compares of an image: packed codes, or float32."""
        return self.bits // 8 if self.bits else 4 * width


def rank_by(
    choice: StageChoice, encoded: EncodedGallery, texts: Embedded, k: int
) -> dict[str, BaseRanking]:
    """Rankings by a first stage, {"t2i", "i2t"}, with k candidates a query.

    What the first stage finds comes first, nearest first; where a screening is chosen, what is left
    of it, by falling cosine. Then come all other items, by Hamming similarity where it compares
    codes, else by cosine. An approximate first stage may find fewer than k, which others fill up.
    """
    images = Embedded(encoded.embeddings, encoded.projections)
    owner = encoded.gallery.caption_image
    own = np.arange(len(images.embeddings), dtype=np.int32)
    return {
        "t2i": _rank(choice, texts, images, owner, own, k),
        "i2t": _rank(choice, images, texts, own, owner, k),
    }


def _rank(
    choice: StageChoice,
    queries: Embedded,
    items: Embedded,
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    k: int,
) -> BaseRanking:
    k, table = min(k, len(items.embeddings)), _searchable(choice, items)
    stage, codes = find_first_stage(choice.name).build(table), table if choice.bits else None
    searched = Searched(stage, items.embeddings, codes, choice.bits, choice.screening)
    vectors = _vectors(choice, items)
    count = len(queries.embeddings)
    out = BaseRanking(
        np.empty((count, k), np.int32), np.empty((count, k), np.float32),
        np.empty(count, np.int32), np.empty(count, np.int32),
    )  # fmt: skip
    for start in range(0, count, QUERIES):
        rows = slice(start, start + QUERIES)
        some = Embedded(queries.embeddings[rows], queries.projections[rows])
        if choice.screening == PLAIN:
            found = stage.nearest(_searchable(choice, some), k)
        else:
            found, _ = searched.candidates(some.embeddings, some.projections, k)
        cosines = some.embeddings @ items.embeddings.T
        near = _vectors(choice, some) @ vectors.T / np.float32(choice.bits or 1)
        # Cosines and Hamming similarities lie within 1 of 0, but for rounding.
        query, column = np.nonzero(found.rows >= 0)
        near[query, found.rows[query, column]] = 2 + found.rows.shape[1] - column
        order = np.argsort(-near, axis=1, kind="stable")[:, :k]
        out.candidates[rows] = order
        out.similarities[rows] = np.take_along_axis(cosines, order, axis=1)
        positive = query_image[rows, None] == item_image[None]
        out.best[rows], out.rank[rows] = best_positive(near, positive)
    return out


def stage_recalls(
    choice: StageChoice,
    encoded: EncodedGallery,
    texts: Embedded,
    depths: Sequence[int] = DEPTHS,
) -> dict[str, ExpectedRecalls]:
    """Recalls of a first stage, {"t2i", "i2t"}, without any rescoring: of an exact one by what it
    compares, cosines or Hamming distances, which tie; of another by the rows that it finds."""
    images = Embedded(encoded.embeddings, encoded.projections)
    owner = encoded.gallery.caption_image
    own = np.arange(len(images.embeddings), dtype=np.int32)
    is_exact = find_first_stage(choice.name).is_exact
    recalls = _recalls_of_compared if is_exact else _recalls_of_found
    return {
        "t2i": recalls(choice, texts, images, owner, own, depths),
        "i2t": recalls(choice, images, texts, own, owner, depths),
    }


def _recalls_of_compared(
    choice: StageChoice,
    queries: Embedded,
    items: Embedded,
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    depths: Sequence[int],
) -> ExpectedRecalls:
    vectors = _vectors(choice, queries), _vectors(choice, items)
    return first_stage_recalls(*vectors, query_image, item_image, depths, inner_products)


def _recalls_of_found(
    choice: StageChoice,
    queries: Embedded,
    items: Embedded,
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    depths: Sequence[int],
) -> ExpectedRecalls:
    stage = find_first_stage(choice.name).build(_searchable(choice, items))
    rows = stage.nearest(_searchable(choice, queries), max(depths)).rows
    right = (item_image[rows] == query_image[:, None]) & (rows >= 0)
    hits = np.stack([right[:, :depth].any(axis=1) for depth in depths], axis=1)
    return ExpectedRecalls(tuple(depths), hits.astype(float), np.isin(query_image, item_image))


def stage_vectors(
    choice: StageChoice, encoded: EncodedGallery, texts: Embedded
) -> tuple[Float32[np.ndarray, "t w"], Float32[np.ndarray, "n w"]]:
    """(captions, images) by whose inner products a first stage ranks: embeddings, or codes as -1
    and 1."""
    images = Embedded(encoded.embeddings, encoded.projections)
    return _vectors(choice, texts), _vectors(choice, images)


def _vectors(choice: StageChoice, side: Embedded) -> Float32[np.ndarray, "n w"]:
    """Embeddings, or codes as -1 and 1."""
    if choice.bits is None:
        return side.embeddings
    return np.where(side.projections[:, : choice.bits] > 0, np.float32(1), np.float32(-1))


def _searchable(choice: StageChoice, side: Embedded) -> np.ndarray:
    """Embeddings, or packed codes: rows that a first stage is built from and asked with."""
    if choice.bits is None:
        return side.embeddings
    return pack(np.ascontiguousarray(side.projections[:, : choice.bits]))


def stage_metrics(choice: StageChoice, encoded: EncodedGallery, texts: Embedded) -> dict[str, Any]:
    """Entry "first_stage" of metrics.json: name, bits, recalls of both directions, and bytes."""
    recalls = stage_recalls(choice, encoded, texts)
    width = encoded.embeddings.shape[1]
    return {
        "name": choice.name,
        "bits": choice.bits,
        **{key: recalls[key].recalls for key in DIRECTIONS},
        "bytes_per_image": choice.bytes_per_image(width),
    }
