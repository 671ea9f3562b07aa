"""Whether a match score of 0.8 is right in eight cases of ten."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from edje_jax.evaluation.retrieval import Direction

BINS = 15
"""Bins of equal width, as in Guo et al. (arXiv 1706.04599)."""


def reliability(scores: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """{"ece", "bins": [{"pairs", "score", "right"}, ...]} of match logits and what is right.

    A bin holds the pairs whose sigmoid lies in it: their number, mean score and share of right
    ones; empty bins are left out. The expected calibration error is the mean distance of the two,
    weighted by pairs: sum over bins of n / N * |right - score|.

    Raises:
        ValueError: there is no pair.
    """
    if not len(scores):
        raise ValueError("no scored pair; there is nothing to calibrate")
    probability = np.exp(-np.logaddexp(0.0, -scores.astype(np.float64)))
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    pairs = np.bincount(place, minlength=BINS)
    used = np.flatnonzero(pairs)
    score, right = (
        np.bincount(place, values, BINS)[used] / pairs[used] for values in (probability, hits)
    )
    return {
        "ece": float(np.sum(pairs[used] * np.abs(right - score)) / len(scores)),
        "bins": [
            {"pairs": int(n), "score": float(s), "right": float(r)}
            for n, s, r in zip(pairs[used], score, right, strict=True)
        ],
    }


def direction_reliability(direction: Direction) -> dict[str, Any]:
    """Reliability of the scores of all candidates of every query that counts."""
    counted = direction.answered
    return reliability(direction.scores[counted].ravel(), direction.hits[counted].ravel())
