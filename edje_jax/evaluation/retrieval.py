"""Two-stage retrieval over a captioned gallery: nearest by embedding, then reranked pair by pair.

Both directions at once. Text-to-image: each caption's k nearest images by cosine are reordered by
match logit + similarity_weight * cosine; everything past k stays as it was. Image-to-text: the same
from each image among the captions. Equal similarities rank by lower index, equal reranking scores
by base order, so that a result is a function of its numbers alone.

As in the published EDJE evaluation (arXiv 2510.06820), R@k for k at or past the depth cannot
change; unlike it, a pair that both directions ask for is scored once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.ranks import best_positive, candidate_ceiling
from edje_jax.evaluation.scores import add_cosines
from edje_jax.evaluation.similarities import similarity_blocks

ScorePairs = Callable[
    [Int[np.ndarray, " p"], Int[np.ndarray, " p"]],
    Float[np.ndarray, " p"],
]
"""(text index, image index) int32 -> match logits, for a list of pairs of any length."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images and captions that are searched; an image that could not be read is left out.

    `captions` are the captions of all images in one list and `caption_image` int32 [T] numbers the
    image of each. An image without captions is a distractor: a candidate, never a counted query.

    Raises:
        ValueError: there is nothing to search, an image id is empty or stands twice, or
            `caption_image` does not fit the lists.
    """

    image_ids: list[str]
    captions: list[str]
    caption_image: Int[np.ndarray, " t"]

    def __post_init__(self):
        owner = np.asarray(self.caption_image)
        if not self.image_ids or not self.captions:
            raise ValueError(
                f"the gallery has {len(self.image_ids)} images and {len(self.captions)} "
                "captions; evaluation needs both"
            )
        if owner.shape != (len(self.captions),):
            raise ValueError(
                f"caption_image has shape {owner.shape} for {len(self.captions)} captions"
            )
        if owner.min() < 0 or owner.max() >= len(self.image_ids):
            raise ValueError(
                f"caption_image runs from {owner.min()} to {owner.max()}; "
                f"the gallery has images 0 to {len(self.image_ids) - 1}"
            )
        _check_ids(self.image_ids)
        object.__setattr__(self, "caption_image", owner.astype(np.int32))

    @classmethod
    def of(cls, image_ids: Sequence[str], captions: Sequence[Sequence[str]]) -> "Gallery":
        """Make a gallery of each image's id and captions."""
        owner = [i for i, texts in enumerate(captions) for _ in texts]
        return cls(
            list(image_ids),
            [text for texts in captions for text in texts],
            np.array(owner, np.int32),
        )

    @cached_property
    def text_ids(self) -> list[str]:
        """Ids of the captions: the image's id, '#', and the caption's number within the image."""
        count = [0] * len(self.image_ids)
        ids = []
        for i in self.caption_image.tolist():
            ids.append(f"{self.image_ids[i]}#{count[i]}")
            count[i] += 1
        return ids

    @property
    def fingerprint(self) -> str:
        """Digest, equal for galleries with the same images and captions in the same order."""
        content = json.dumps([self.image_ids, self.captions, self.caption_image.tolist()])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Direction:
    """Result of one direction. Q queries, k candidates each (fewer than asked if fewer exist).

    Ranks start at 1 and are those of the query's best right answer; 0 for a query without one.
    """

    candidates: Int[np.ndarray, "q k"]
    """Items in base order."""
    similarities: Float[np.ndarray, "q k"]
    """Cosine of each candidate."""
    scores: Float[np.ndarray, "q k"]
    """Match logit of each candidate; 0 for a query without a right answer, which is not scored."""
    combined: Float[np.ndarray, "q k"]
    """Values that the reranking sorts by: score + similarity_weight * similarity."""
    order: Int[np.ndarray, "q k"]
    """Places in `candidates`, best first: `candidates[q, order[q]]` is the reranked list."""
    hits: Bool[np.ndarray, "q k"]
    """Whether each candidate is a right answer."""
    base_rank: Int[np.ndarray, " q"]
    """Rank over the whole gallery, exact however small k is."""
    reranked_rank: Int[np.ndarray, " q"]
    """Rank within the candidates where one of them is right, else the base rank."""
    base_best: Int[np.ndarray, " q"]
    """Item whose rank `base_rank` is: the best right answer, or -1 for none."""

    @property
    def answered(self) -> Bool[np.ndarray, " q"]:
        """Queries that have a right answer in the gallery: those that count."""
        return self.base_rank > 0

    def reranked(self, values: np.ndarray) -> np.ndarray:
        """Reorder one of the [q, k] fields as the reranking does."""
        return np.take_along_axis(values, self.order, axis=1)

    def metrics(self) -> dict[str, Any]:
        """Measures: {"base": {"R@1", ...}, "reranked": {...}, "ceiling"}, each in its unit."""
        return {
            "base": measure_ranks(self.base_rank),
            "reranked": measure_ranks(self.reranked_rank),
            "ceiling": candidate_ceiling(self.hits[self.answered]),
        }

    def at(self, k: int, similarity_weight: float) -> "Direction":
        """Result with fewer candidates and another weight; nothing is scored again."""
        names = ("candidates", "similarities", "scores", "hits")
        cut = {name: getattr(self, name)[:, :k] for name in names}
        return _reordered(
            **cut,
            base_rank=self.base_rank,
            base_best=self.base_best,
            similarity_weight=similarity_weight,
        )


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Results of both directions, with the depth that was asked for and the cosine's weight."""

    t2i: Direction
    i2t: Direction
    k: int
    similarity_weight: float

    def metrics(self) -> dict[str, Any]:
        """Measures: {"k", "t2i": {"base": {"R@1", ...}, "reranked": {...}, "ceiling"}, "i2t"}."""
        return {"k": self.k, "t2i": self.t2i.metrics(), "i2t": self.i2t.metrics()}

    def at(self, k: int | None = None, similarity_weight: float | None = None) -> "Retrieval":
        """Result of `rerank` at a smaller depth or another weight, from the scores at hand.

        Raises:
            ValueError: k is below 1, or deeper than what was scored.
        """
        k = self.k if k is None else k
        weight = self.similarity_weight if similarity_weight is None else similarity_weight
        if not 1 <= k <= self.k:
            raise ValueError(f"k = {k}; the first {self.k} candidates were scored")
        return Retrieval(self.t2i.at(k, weight), self.i2t.at(k, weight), k, weight)


@dataclass(frozen=True, eq=False)
class BaseRanking:
    """Nearest items of each query, and the place of its best right answer among all items."""

    candidates: Int[np.ndarray, "q k"]
    """Items, nearest first."""
    similarities: Float[np.ndarray, "q k"]
    """Cosines of the candidates, or similarities of codes."""
    best: Int[np.ndarray, " q"]
    """Right answer that stands first; -1 if there is none."""
    rank: Int[np.ndarray, " q"]
    """Place of that answer among all items, from 1; 0 if there is none."""

    def of(self, queries: Int[np.ndarray, " p"]) -> "BaseRanking":
        """Ranking of some of the queries."""
        fields = (self.candidates, self.similarities, self.best, self.rank)
        return BaseRanking(*(values[queries] for values in fields))


def rerank(
    gallery: Gallery,
    image_embeddings: Float[np.ndarray, "n e"],
    text_embeddings: Float[np.ndarray, "t d"],
    score_pairs: ScorePairs,
    k: int,
    similarity_weight: float = 0.0,
    base: Mapping[str, BaseRanking] | None = None,
) -> Retrieval:
    """Retrieve in both directions and rerank the first k candidates of each query.

    Embeddings are unit length. `score_pairs` is called once, with every pair that either direction
    asks for, each once, sorted by image and then by caption. An image without captions asks for
    none. `base` holds the rankings {"t2i", "i2t"} of another first stage than exact search, whose k
    candidates are reranked.

    Raises:
        ValueError: k is below 1, the embeddings do not fit the gallery or are not of unit length,
            or `score_pairs` gives something else than one finite number a pair.
    """
    if k < 1:
        raise ValueError(f"k = {k}; the number of candidates to rerank starts at 1")
    images = _embeddings("image_embeddings", image_embeddings, len(gallery.image_ids))
    texts = _embeddings("text_embeddings", text_embeddings, len(gallery.captions))
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"images are embedded in {images.shape[1]} dimensions and captions in "
            f"{texts.shape[1]}; both must come from one backbone"
        )
    owner, numbers = gallery.caption_image, np.arange(len(images), dtype=np.int32)
    if base is None:
        t2i = base_ranking(texts, images, owner, numbers, k)
        i2t = base_ranking(images, texts, numbers, owner, k)
    else:
        t2i, i2t = base["t2i"], base["i2t"]
    asked, captions = np.unique(owner), np.arange(len(texts), dtype=np.int32)
    t2i_scores, asked_scores = score_each_once(
        captions, t2i.candidates, asked, i2t.candidates[asked], score_pairs
    )
    i2t_scores = np.zeros(i2t.candidates.shape, np.float32)
    i2t_scores[asked] = asked_scores
    return Retrieval(
        rank_candidates(t2i, t2i_scores, owner, numbers, similarity_weight),
        rank_candidates(i2t, i2t_scores, numbers, owner, similarity_weight),
        k,
        similarity_weight,
    )


def base_ranking(
    queries: Float[np.ndarray, "q e"],
    items: Float[np.ndarray, "g e"],
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    k: int,
) -> BaseRanking:
    """Exact ranking by inner product; an item is a right answer if it has the query's image.

    Works through the queries in blocks, so memory does not grow with q * g.
    """
    q, k = len(queries), min(k, len(items))
    candidates = np.empty((q, k), np.int32)
    similarities = np.empty((q, k), np.float32)
    best, rank = np.empty(q, np.int32), np.empty(q, np.int32)
    for rows, near in similarity_blocks(queries, items):
        candidates[rows] = top_k(near, k)
        similarities[rows] = np.take_along_axis(near, candidates[rows], axis=1)
        positive = query_image[rows, None] == item_image[None]
        best[rows], rank[rows] = best_positive(near, positive)
    return BaseRanking(candidates, similarities, best, rank)


def top_k(values: Float[np.ndarray, "q g"], k: int) -> Int[np.ndarray, "q k"]:
    """Columns of each row's k largest values, largest first, equal ones by lower column.

    Equal to the first k of a stable sort, at the price of a partition.
    """
    g = values.shape[1]
    columns = np.sort(np.argpartition(values, g - k, axis=1)[:, g - k :], axis=1)
    chosen = np.take_along_axis(values, columns, axis=1)
    columns = np.take_along_axis(columns, np.argsort(-chosen, axis=1, kind="stable"), axis=1)
    # A partition picks any of the values that tie for the last place: sort those rows in full.
    tied = np.count_nonzero(values >= chosen.min(axis=1, keepdims=True), axis=1) > k
    if tied.any():
        columns[tied] = np.argsort(-values[tied], axis=1, kind="stable")[:, :k]
    return columns


def score_each_once(
    captions: Int[np.ndarray, " c"],
    t2i: Int[np.ndarray, "c k"],
    images: Int[np.ndarray, " a"],
    i2t: Int[np.ndarray, "a j"],
    score_pairs: ScorePairs,
) -> tuple[Float[np.ndarray, "c k"], Float[np.ndarray, "a j"]]:
    """Logits of the candidates of some captions and of some images, from one list of unique pairs.

    `t2i` are images for each of `captions`, `i2t` captions for each of `images`, by their numbers.

    Raises:
        ValueError: `score_pairs` gives something else than one finite number a pair.
    """
    texts = int(max(captions.max(initial=0), i2t.max(initial=0))) + 1
    # Image first, so that a scorer that reads tokens from disk meets each image once.
    from_text = t2i.astype(np.int64) * texts + captions[:, None]
    from_image = images[:, None].astype(np.int64) * texts + i2t
    pairs, place = np.unique(
        np.concatenate([from_text.ravel(), from_image.ravel()]), return_inverse=True
    )
    image_index, text_index = (x.astype(np.int32) for x in np.divmod(pairs, texts))
    scores = np.asarray(score_pairs(text_index, image_index), np.float32)
    if scores.shape != pairs.shape:
        raise ValueError(f"score_pairs gave shape {scores.shape} for {len(pairs)} pairs")
    if not np.isfinite(scores).all():
        i = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"score_pairs gave {scores[i]} for caption {text_index[i]} and image "
            f"{image_index[i]}; check the model's weights"
        )
    scores = scores[place.ravel()]
    return scores[: t2i.size].reshape(t2i.shape), scores[t2i.size :].reshape(i2t.shape)


def rank_candidates(
    base: BaseRanking,
    scores: Float[np.ndarray, "q k"],
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    similarity_weight: float,
) -> Direction:
    """Reorder the base ranking's candidates by match logits, with the weighted cosine mixed in.

    `query_image` and `item_image` number the image of each query and of each item.
    """
    return _reordered(
        candidates=base.candidates,
        similarities=base.similarities,
        scores=scores,
        hits=item_image[base.candidates] == query_image[:, None],
        base_rank=base.rank,
        base_best=base.best,
        similarity_weight=similarity_weight,
    )


def _reordered(
    *,
    candidates: Int[np.ndarray, "q k"],
    similarities: Float[np.ndarray, "q k"],
    scores: Float[np.ndarray, "q k"],
    hits: Bool[np.ndarray, "q k"],
    base_rank: Int[np.ndarray, " q"],
    base_best: Int[np.ndarray, " q"],
    similarity_weight: float,
) -> Direction:
    combined = add_cosines(scores, similarities, similarity_weight)
    order = np.argsort(-combined, axis=1, kind="stable").astype(np.int32)
    place = np.take_along_axis(hits, order, axis=1).argmax(axis=1)
    return Direction(
        candidates=candidates,
        similarities=similarities,
        scores=scores,
        combined=combined,
        order=order,
        hits=hits,
        base_rank=base_rank,
        reranked_rank=np.where(hits.any(axis=1), place + 1, base_rank).astype(np.int32),
        base_best=base_best,
    )


def _embeddings(name: str, values: np.ndarray, rows: int) -> Float[np.ndarray, "r e"]:
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or len(values) != rows:
        raise ValueError(f"{name} has shape {values.shape}; the gallery needs ({rows}, e)")
    lengths = np.linalg.norm(values, axis=1)
    # Loose enough for embeddings that were stored in bfloat16; a NaN fails it too.
    wrong = np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))
    if len(wrong):
        raise ValueError(
            f"{name}: row {wrong[0]} has length {lengths[wrong[0]]:.4g}; "
            "divide embeddings by their length first"
        )
    return values


def _check_ids(image_ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(image_ids):
        if not name:
            raise ValueError(f"image {i} has an empty id; give every image a name")
        if name in seen:
            raise ValueError(
                f"image id {name!r} stands twice; put an image's captions into one record"
            )
        seen.add(name)


DIRECTIONS = {"t2i": "Text to image", "i2t": "Image to text"}
