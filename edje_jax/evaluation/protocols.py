"""Protocols beyond one gallery at one depth: folds, some of the queries, other depths and weights.

COCO's "1k" numbers are means over five disjoint folds of the 5,000 test images, each a gallery of
its own, as in VSE++ (arXiv 1707.05612).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from edje_jax.evaluation.retrieval import (
    DIRECTIONS,
    BaseRanking,
    Gallery,
    Retrieval,
    ScorePairs,
    base_ranking,
    rank_candidates,
    rerank,
    score_each_once,
)


class Timed:
    """A scorer that remembers how many pairs it has scored, and in how many seconds."""

    def __init__(self, score_pairs: ScorePairs):
        self._score_pairs = score_pairs
        self.pairs, self.seconds = 0, 0.0

    def __call__(self, text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        """Scores of the pairs, while time and pairs are counted."""
        started = time.perf_counter()
        scores = self._score_pairs(text_index, image_index)
        self.seconds += time.perf_counter() - started
        self.pairs += len(text_index)
        return scores


class Remembering:
    """A scorer that computes a pair once, however often it is asked for; each call computes what is
    new, sorted by image and then by caption."""

    def __init__(self, score_pairs: ScorePairs):
        self._score_pairs = score_pairs
        self._pairs, self._scores = np.empty(0, np.int64), np.empty(0, np.float32)

    def __call__(self, text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        """Scores of the pairs."""
        pairs = image_index.astype(np.int64) << 32 | text_index
        if len(new := np.setdiff1d(pairs, self._pairs)):
            images, texts = new >> 32, new & 0xFFFFFFFF
            scores = self._score_pairs(texts.astype(np.int32), images.astype(np.int32))
            place = np.searchsorted(self._pairs, new)
            self._pairs = np.insert(self._pairs, place, new)
            self._scores = np.insert(self._scores, place, scores)
        return self._scores[np.searchsorted(self._pairs, pairs)]


def rerank_folds(
    gallery: Gallery,
    image_embeddings: Float[np.ndarray, "n e"],
    text_embeddings: Float[np.ndarray, "t e"],
    score_pairs: ScorePairs,
    k: int,
    count: int,
    similarity_weight: float = 0.0,
) -> list[Retrieval]:
    """Rerank each of `count` folds, which hold consecutive images and their captions.

    The folds differ by at most one image in size; COCO's 5,000 give five of 1,000.

    Raises:
        ValueError: there are fewer than two folds, or one of them has nothing to ask for.
    """
    total = len(gallery.image_ids)
    if not 2 <= count <= total:
        raise ValueError(f"{count} folds of {total} images; give 2 to {total}")
    results = []
    for rows in np.array_split(np.arange(total), count):
        first, after = int(rows[0]), int(rows[-1]) + 1
        owner = gallery.caption_image
        texts = np.flatnonzero((owner >= first) & (owner < after)).astype(np.int32)
        fold = Gallery(
            gallery.image_ids[first:after],
            [gallery.captions[t] for t in texts.tolist()],
            owner[texts] - first,
        )

        def score(text_index, image_index, texts=texts, first=first):
            return score_pairs(texts[text_index], image_index + np.int32(first))

        images = image_embeddings[first:after]
        results.append(rerank(fold, images, text_embeddings[texts], score, k, similarity_weight))
    return results


class SomeQueries(NamedTuple):
    """Retrieval of some of a gallery's queries."""

    retrieval: Retrieval
    """Results whose rows are those queries."""
    caption_image: Int[np.ndarray, " q"]
    """Image of each caption that was asked for."""
    images: Int[np.ndarray, " p"]
    """Images that were asked for."""


def rerank_some(
    gallery: Gallery,
    image_embeddings: Float[np.ndarray, "n e"],
    text_embeddings: Float[np.ndarray, "t e"],
    score_pairs: ScorePairs,
    k: int,
    queries: int,
    base: Mapping[str, BaseRanking] | None = None,
) -> SomeQueries:
    """Rerank for at most `queries` captions, and as many images, spread evenly over the gallery.

    All of the gallery stays to be found. `base` holds the rankings {"t2i", "i2t"} of all queries by
    another first stage than exact search, whose k candidates are reranked.
    """
    owner, images = gallery.caption_image, np.arange(len(image_embeddings), dtype=np.int32)
    captions = _spread(len(owner), queries)
    asked = np.unique(owner)[_spread(len(np.unique(owner)), queries)]
    if base is None:
        t2i = base_ranking(text_embeddings[captions], image_embeddings, owner[captions], images, k)
        i2t = base_ranking(image_embeddings[asked], text_embeddings, asked, owner, k)
    else:
        t2i, i2t = base["t2i"].of(captions), base["i2t"].of(asked)
    of_captions, of_images = score_each_once(
        captions, t2i.candidates, asked, i2t.candidates, score_pairs
    )
    retrieval = Retrieval(
        rank_candidates(t2i, of_captions, owner[captions], images, 0.0),
        rank_candidates(i2t, of_images, asked, owner, 0.0),
        k,
        0.0,
    )
    return SomeQueries(retrieval, owner[captions], asked)


def _spread(total: int, count: int) -> Int[np.ndarray, " n"]:
    """Pick at most `count` numbers below `total`, evenly spread."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.int32)


def folds_summary(results: Sequence[Retrieval]) -> dict[str, Any]:
    """Mean over folds, then each of them: {"count", "pictures", "k", "t2i", "i2t", "each"}."""
    each = [result.metrics() for result in results]
    return {
        "count": len(results),
        "pictures": [len(result.i2t.base_rank) for result in results],
        "k": results[0].k,
        **{key: _mean([one[key] for one in each]) for key in DIRECTIONS},
        "each": each,
    }


def k_sweep(retrieval: Retrieval, depths: Sequence[int], pairs_per_second: float) -> dict[str, Any]:
    """Measures at every depth, from the scores of the deepest: {"pairs_per_second", "at": [...]}.

    Each entry of "at" is {"k", "ms_per_query", "t2i", "i2t"}. The cost is that of scoring k pairs
    at the measured rate of large batches, or as many as there are in the larger of the two sides;
    finding the candidates is not in it.
    """
    most = max(getattr(retrieval, key).candidates.shape[1] for key in DIRECTIONS)
    return {
        "pairs_per_second": pairs_per_second,
        "at": [
            {
                "k": k,
                "ms_per_query": 1e3 * min(k, most) / pairs_per_second,
                **_directions(retrieval.at(k=k)),
            }
            for k in depths
        ],
    }


def weight_sweep(retrieval: Retrieval, weights: Sequence[float]) -> list[dict[str, Any]]:
    """Measures at every weight of the cosine: [{"similarity_weight", "t2i", "i2t"}, ...].

    Choose a weight on a validation set; the best of several on the test set is fitted to it.
    """
    return [
        {"similarity_weight": weight, **_directions(retrieval.at(similarity_weight=weight))}
        for weight in weights
    ]


def _directions(retrieval: Retrieval) -> dict[str, Any]:
    return {key: getattr(retrieval, key).metrics() for key in DIRECTIONS}


def _mean(trees: Sequence[Any]) -> Any:
    """Mean of nested dicts with equal keys, leaf by leaf."""
    if isinstance(trees[0], dict):
        return {key: _mean([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))
