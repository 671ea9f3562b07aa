"""Calibration: whether a score of 0.8 is right in eight cases of ten, and how to make it so.

A fit is to the scored candidates of both directions together, as one model serves both.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.retrieval import DIRECTIONS, Direction, Retrieval
from edje_jax.evaluation.scores import add_cosines, calibrated_logits

BINS = 15
"""Bins of equal width, as in Guo et al. (arXiv 1706.04599)."""

SUPPORT = 30
"""Results that a least score must be judged by: of fewer, nine in ten is chance."""

DOES_NOT_RANK = (
    "candidates with higher logits are right less often: this model does not rank this set; check"
    " that the model and the data belong together"
)


def reliability(scores: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Reliability of logits: {"ece", "bins": [{"pairs", "score", "right"}, ...]}.

    `hits` tells which pairs are right. A bin holds the pairs whose sigmoid lies in it: "pairs" is
    their number, "score" their mean score, "right" the share of right ones; empty bins are left
    out. The expected calibration error is the mean distance of score and share, weighted by pairs:
    sum over bins of n / N * |right - score|.

    Raises:
        ValueError: there is no pair.
    """
    if not len(scores):
        raise ValueError("no scored pair; there is nothing to calibrate")
    probability = _sigmoid(scores)
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


def direction_reliability(
    direction: Direction, calibration: Calibration = UNTUNED
) -> dict[str, Any]:
    """Reliability of the calibrated scores of all candidates of every query that counts.

    The entry "first" is the reliability of each query's best result alone. The order of the
    direction makes no difference.
    """
    logits, hits = _scored(direction, calibration)
    first = logits.argmax(axis=1)[:, None]
    best = (np.take_along_axis(values, first, axis=1)[:, 0] for values in (logits, hits))
    return {**reliability(logits.ravel(), hits.ravel()), "first": reliability(*best)}


def precision_above(
    direction: Direction, calibration: Calibration, min_score: float
) -> dict[str, Any]:
    """Precision of the results that reach a score: {"precision", "recall", "empty"}, in percent.

    "precision": right results among them (100 if there are none); "recall": queries with a right
    result among them, of those with one among their candidates; "empty": queries without results.
    """
    logits, hits = _scored(direction, calibration)
    kept = np.asarray(_sigmoid(logits) >= min_score)
    right, shown = kept & hits, np.count_nonzero(kept)
    found = np.count_nonzero(hits.any(axis=1))
    return {
        "precision": 100.0 * np.count_nonzero(right) / shown if shown else 100.0,
        "recall": 100.0 * np.count_nonzero(right.any(axis=1)) / max(found, 1),
        "empty": 100.0 * np.count_nonzero(~kept.any(axis=1)) / len(kept),
    }


def _scored(
    direction: Direction, calibration: Calibration
) -> tuple[Float[np.ndarray, "q k"], Bool[np.ndarray, "q k"]]:
    """Logits whose sigmoids are the scores, and which are right, of every query that counts."""
    counted = direction.answered
    logits, similarities = direction.scores[counted], direction.similarities[counted]
    combined = add_cosines(logits, similarities, calibration.similarity_weight)
    return calibrated_logits(combined, calibration), direction.hits[counted]


def calibrate(
    retrieval: Retrieval,
    caption_image: Int[np.ndarray, " t"],
    images: Int[np.ndarray, " n"],
    precision: float,
) -> Calibration:
    """Fit the calibration that suits a retrieval best, with a record of what it does there.

    `caption_image` and `images` number the image of each query of the two directions.

    The weight of the first stage is that of `first_stage_weight`. Temperature and bias are the most
    likely ones (Platt scaling). The errors "after" are measured on images that temperature and bias
    were not fitted on, in two halves. "min_score" is the least score at which `precision` (a share)
    of the results are right, and "recall_kept" the percentage of queries whose right answer reaches
    it, of those with one among their candidates.

    Raises:
        ValueError: no candidate is right, or all are; or the scores do not tell right from wrong.
    """
    weight = first_stage_weight(retrieval)
    weighted = retrieval.at(similarity_weight=weight)
    calibration = fit_platt_scaling(*_pairs(weighted))
    least, reached = lowest_score(*_pairs(weighted), calibration, precision)
    before, after = retrieval.at(similarity_weight=0.0).metrics(), weighted.metrics()
    calibration = dataclasses.replace(calibration, similarity_weight=weight)
    kept = {
        key: 0.0
        if least is None
        else precision_above(getattr(retrieval, key), calibration, least)["recall"]
        for key in DIRECTIONS
    }
    record = {
        "k": retrieval.k,
        "pairs": len(_pairs(weighted)[0]),
        "recall_at_1": {
            key: [m[key]["reranked"]["R@1"] for m in (before, after)] for key in DIRECTIONS
        },
        "ece": _errors(weighted, {"t2i": caption_image, "i2t": images}),
        "precision": precision,
        "min_score": least,
        "precision_reached": reached,
        "recall_kept": kept,
    }
    return dataclasses.replace(calibration, fitted=record)


def first_stage_weight(retrieval: Retrieval) -> float:
    """Weight of the first stage's cosine that makes right candidates most likely to be first.

    A conditional logit: the chance of a candidate is the softmax, over its query's candidates, of
    a * logit + b * cosine; a and b maximise the mean log-likelihood of the right candidates, both
    directions alike, and the weight is b / a, or 0 if the cosine tells nothing more. Counting R@1
    for many weights picks one at random from a plateau.

    Raises:
        ValueError: no query has right and wrong candidates, or higher logits are right less often.
    """
    sides = [
        side for key in DIRECTIONS if len((side := _centred(getattr(retrieval, key))).hits) > 0
    ]
    if not sides:
        raise ValueError(
            "no query has right and wrong candidates; give a larger set, or a larger --k"
        )
    units = [np.mean([np.std(side[i]) for side in sides]) or 1.0 for i in (0, 1)]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = 0.0, np.zeros(2)
        for logits, cosines, hits in sides:
            features = np.stack([logits / units[0], cosines / units[1]])
            value = np.tensordot(parameters, features, 1)
            odds = np.exp(value - value.max(axis=1, keepdims=True))
            chance = odds / odds.sum(axis=1, keepdims=True)
            right = np.where(hits, odds, 0.0)
            total -= np.mean(np.log((right.sum(axis=1) + 1e-300) / odds.sum(axis=1)))
            pull = chance - right / (right.sum(axis=1, keepdims=True) + 1e-300)
            slope += np.array([np.mean((pull * one).sum(axis=1)) for one in features])
        return total, slope

    by_logit, by_cosine = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if by_logit <= 0:
        raise ValueError(DOES_NOT_RANK)
    return max(float(by_cosine / by_logit * units[0] / units[1]), 0.0)


class _Centred(NamedTuple):
    """Candidates of some queries, with values less their means over each query's candidates."""

    logits: Float[np.ndarray, "q k"]
    cosines: Float[np.ndarray, "q k"]
    hits: Bool[np.ndarray, "q k"]


def _centred(direction: Direction) -> _Centred:
    """Centre the logits and cosines of queries that have right and wrong candidates."""
    some = direction.hits.any(axis=1) & ~direction.hits.all(axis=1)
    values = (x[some].astype(np.float64) for x in (direction.scores, direction.similarities))
    logits, cosines = (x - x.mean(axis=1, keepdims=True) for x in values)
    return _Centred(logits, cosines, direction.hits[some])


def fit_platt_scaling(logits: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]) -> Calibration:
    """Fit the temperature and bias that make the right answers most likely (Platt, 1999).

    Targets are Platt's, a little inside 0 and 1, so that few pairs make no certainty.

    Raises:
        ValueError: no pair is right, or all are, or higher logits are right less often.
    """
    right, pairs = int(hits.sum()), len(hits)
    if not 0 < right < pairs:
        raise ValueError(
            f"{right} of {pairs} scored candidates are right; calibration needs both kinds: give a"
            " larger set, or a larger --k"
        )
    x = logits.astype(np.float64)
    centre, spread = x.mean(), max(x.std(), 1e-9)
    z = (x - centre) / spread
    target = np.where(hits, (right + 1) / (right + 2), 1 / (pairs - right + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, shift = parameters
        value = slope * z + shift
        slack = _sigmoid(value) - target
        return (
            float(np.mean(np.logaddexp(0.0, value) - target * value)),
            np.array([np.mean(slack * z), np.mean(slack)]),
        )

    prior = np.log(right / (pairs - right))
    # Convex in both, and of scale one: nothing can go wrong but data without an optimum.
    slope, shift = minimize(loss, np.array([1.0, prior]), jac=True, method="BFGS").x
    if slope <= 0:
        raise ValueError(DOES_NOT_RANK)
    return Calibration(
        temperature=float(spread / slope), bias=float(shift - slope * centre / spread)
    )


def lowest_score(
    logits: Float[np.ndarray, " n"],
    hits: Bool[np.ndarray, " n"],
    calibration: Calibration,
    precision: float,
    support: int = SUPPORT,
) -> tuple[float | None, float | None]:
    """Least score above which a share `precision` of the pairs are right, and that share.

    Both are None if there is no such score that at least `support` pairs reach.
    """
    scores = _sigmoid(calibrated_logits(logits.astype(np.float64), calibration))
    order = np.argsort(-scores, kind="stable")
    decreasing = scores[order]
    count = np.arange(1, len(order) + 1)
    shares = np.cumsum(hits[order]) / count
    # Pairs of equal scores are kept together or not at all.
    last = np.append(decreasing[:-1] > decreasing[1:], True)
    enough = np.flatnonzero(last & (shares >= precision) & (count >= support))
    if not len(enough):
        return None, None
    return float(decreasing[enough[-1]]), float(shares[enough[-1]])


def _errors(
    retrieval: Retrieval, owner: dict[str, Int[np.ndarray, " q"]]
) -> dict[str, list[float | None]]:
    """Expected calibration errors: {direction: [of plain sigmoids, of calibrated scores]}.

    The second is measured on images that were not fitted on, and is None where half of the images
    are too few to fit to. `owner` numbers the image of each query.
    """
    most = max(int(images.max()) for images in owner.values())
    side = np.random.default_rng(0).permutation(most + 1) % 2
    halves = {key: side[images] for key, images in owner.items()}
    try:
        fitted = {half: fit_platt_scaling(*_pairs(retrieval, halves, 1 - half)) for half in (0, 1)}
    except ValueError:
        fitted = {}
    out: dict[str, list[float | None]] = {}
    for key in DIRECTIONS:
        direction = getattr(retrieval, key)
        parts = [
            (calibrated_logits(logits, fitted[half]), hits)
            for half in fitted
            for logits, hits in [_pairs_of(direction, halves[key] == half)]
        ]
        after = None
        if parts and any(len(logits) for logits, _ in parts):
            after = reliability(*(np.concatenate(part) for part in zip(*parts, strict=True)))["ece"]
        out[key] = [direction_reliability(direction)["ece"], after]
    return out


def _pairs(
    retrieval: Retrieval, halves: dict[str, np.ndarray] | None = None, half: int = 0
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Logits that sort the candidates, and which are right, of both directions."""
    parts = [
        _pairs_of(getattr(retrieval, key), halves[key] == half if halves else None)
        for key in DIRECTIONS
    ]
    logits, hits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return logits, hits


def _pairs_of(
    direction: Direction, chosen: Bool[np.ndarray, " q"] | None
) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Logits that sort the candidates, and which are right, of all queries or of those chosen."""
    counted = direction.answered if chosen is None else direction.answered & chosen
    return direction.combined[counted].ravel(), direction.hits[counted].ravel()


def _sigmoid(logits: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
