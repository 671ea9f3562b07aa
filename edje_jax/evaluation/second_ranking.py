"""Second reranking of an evaluation: the best of the first one's order, scored by another model.

Both models' scores are taken as judgements of one pair, and pooled as logits:

    (1 - weight) first + weight second

each divided by its model's temperature, with its bias added. Weight 0 is the first order, 1 that of
the second model alone; with k2 = k candidates it is an ensemble, with fewer a cascade.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig
from edje_jax.evaluation.combination import pool_logits
from edje_jax.evaluation.intervals import difference_intervals
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.ranks import candidate_ceiling
from edje_jax.evaluation.retrieval import (
    DIRECTIONS,
    Direction,
    Gallery,
    Retrieval,
    ScorePairs,
    score_each_once,
)
from edje_jax.evaluation.scores import calibrated_logits

log = logging.getLogger(__name__)

WEIGHTS = tuple(np.linspace(0, 1, 21).round(2).tolist())
"""Weights of the second model that are compared."""


def check_same_frames(first: EdjeConfig, second: EdjeConfig) -> None:
    """Refuse a second model that reads other frames of a video than the first one.

    Raises:
        ValueError: it does, or only one of them reads videos.
    """
    own, other = (_frames_read(config) for config in (first, second))
    if own != other:
        raise ValueError(
            f"the first model reads {own} and the second one {other}; take two that read the same"
            " frames"
        )


def _frames_read(config: EdjeConfig) -> str:
    return f"{config.video.sampling.words}, of a video" if config.video else "images"


def check_calibrated(first: Calibration, second: Calibration, weight: float) -> bool:
    """Whether both models were calibrated; warns if not and the weight pools their logits."""
    sides = (("first", first), ("second", second))
    untuned = " and the ".join(name for name, one in sides if not one.is_fitted)
    if untuned and 0 < weight < 1:
        log.warning(
            "weight %g: the scores of the %s model are not calibrated, so that the weight depends"
            " on their scale; run edje tune --save on both",
            weight, untuned,
        )  # fmt: skip
    return not untuned


@dataclass(frozen=True, eq=False)
class SecondDirection:
    """Best k2 candidates of each query of one direction, in the first reranking's order."""

    first: Float[np.ndarray, "q k2"]
    """Calibrated logits of the first model, falling."""
    second: Float[np.ndarray, "q k2"]
    """Calibrated logits of the second model; 0 for a query without a right answer."""
    hits: Bool[np.ndarray, "q k2"]
    """Whether each candidate is a right answer."""
    rank: Int[np.ndarray, " q"]
    """Rank of the best right answer after the first reranking; 0 for a query without one."""

    def ranks(self, weight: float) -> Int[np.ndarray, " q"]:
        """Rank of each query's best right answer, which stays where it was if it is none of these
        candidates; equal candidates keep the first order."""
        order = np.argsort(-pool_logits(self.first, self.second, weight), axis=1, kind="stable")
        place = np.take_along_axis(self.hits, order, axis=1).argmax(axis=1)
        return np.where(self.hits.any(axis=1), place + 1, self.rank)


@dataclass(frozen=True, eq=False)
class SecondRanking:
    """Results of both directions as functions of the second model's weight."""

    t2i: SecondDirection
    i2t: SecondDirection
    k: int
    """Candidates that the second model scores."""
    images: dict[str, Int[np.ndarray, " q"]]
    """Number of each query's image, by direction."""

    def best_weight(self) -> float:
        """Weight of `WEIGHTS` with the highest mean R@1 of both directions; of several, the middle
        one."""
        sums = [
            sum(measure_ranks(getattr(self, key).ranks(weight))["R@1"] for key in DIRECTIONS)
            for weight in WEIGHTS
        ]
        best = np.flatnonzero(np.isclose(sums, max(sums)))
        return WEIGHTS[best[len(best) // 2]]

    def metrics(self, weight: float) -> dict[str, Any]:
        """{"k", "weight", "t2i": {"R@1", ..., "ceiling", "interval"}, "i2t"}: measures in their
        units, and the 95% intervals of their gain over the first reranking."""
        out: dict[str, Any] = {"k": self.k, "weight": weight}
        for key in DIRECTIONS:
            side: SecondDirection = getattr(self, key)
            ranks = side.ranks(weight)
            gains = difference_intervals(side.rank, ranks, self.images[key])
            out[key] = {
                **measure_ranks(ranks),
                "ceiling": candidate_ceiling(side.hits[side.rank > 0]),
                "interval": {name: list(interval) for name, interval in gains.items()},
            }
        return out


def rank_again(
    gallery: Gallery,
    first: Retrieval,
    calibration: Calibration,
    score_pairs: ScorePairs,
    k: int,
) -> SecondRanking:
    """Score the best k candidates of every query's first reranking by a second model.

    `calibration` is the first model's; `score_pairs` gives the second one's calibrated logits, and
    is called once, with every pair once.

    Raises:
        ValueError: k is below 1, or `score_pairs` gives something else than one finite number a
            pair.
    """
    if k < 1:
        raise ValueError(f"k = {k}; the number of candidates to rerank again starts at 1")
    k = min(k, first.k)
    t2i, i2t = (side.reranked(side.candidates)[:, :k] for side in (first.t2i, first.i2t))
    captions, asked = np.arange(len(t2i), dtype=np.int32), np.unique(gallery.caption_image)
    of_captions, of_asked = score_each_once(captions, t2i, asked, i2t[asked], score_pairs)
    of_images = np.zeros(i2t.shape, np.float32)
    of_images[asked] = of_asked
    return SecondRanking(
        _second(first.t2i, of_captions, calibration),
        _second(first.i2t, of_images, calibration),
        k,
        {"t2i": gallery.caption_image, "i2t": np.arange(len(i2t))},
    )


def _second(
    first: Direction, scores: Float[np.ndarray, "q k2"], calibration: Calibration
) -> SecondDirection:
    k = scores.shape[1]
    logits = calibrated_logits(first.reranked(first.combined)[:, :k], calibration)
    return SecondDirection(logits, scores, first.reranked(first.hits)[:, :k], first.reranked_rank)
