"""How far a difference of recalls would move if other pictures had been drawn.

A paired bootstrap over pictures (clusters): captions of one picture are no independent queries, so
pictures are drawn with replacement and bring all their queries along, with both systems' outcomes
on each. The interval is that of the percentiles (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). It covers the choice of pictures alone, not the seeds of training.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from edje_jax.evaluation.metrics import RECALLS
from edje_jax.evaluation.retrieval import Gallery, Retrieval

DRAWS = 5000
LEVEL = 95
BLOCK = 1 << 20
"""Counts held at once while drawing."""


def difference_intervals(
    before: Int[np.ndarray, " q"],
    after: Int[np.ndarray, " q"],
    picture: Int[np.ndarray, " q"],
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% interval of each R@k's gain, in points: {"R@1": (low, high), ...}.

    `before` and `after` are the ranks of the same queries under two systems, 0 for a query without
    a right answer, which does not count; `picture` numbers each query's picture.

    Raises:
        ValueError: the arrays do not fit each other, or no query counts.
    """
    if not before.shape == after.shape == picture.shape:
        raise ValueError(f"ranks of {len(before)} and {len(after)} queries, {len(picture)} owners")
    counted = before > 0
    if not np.array_equal(counted, after > 0):
        raise ValueError("a query counts in one of the two systems only")
    if not counted.any():
        raise ValueError("no query has a right answer; there is nothing to draw from")
    # A picture's column of sums: queries, then the difference of hits at each k.
    hits = [(after <= k).astype(float) - (before <= k) for k in RECALLS]
    _, cluster = np.unique(picture[counted], return_inverse=True)
    sums = np.stack(
        [np.bincount(cluster, values[counted]) for values in (np.ones(len(before)), *hits)], axis=1
    )
    drawn = _draw(sums, np.random.default_rng(seed))
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(100 * drawn[:, 1:] / drawn[:, :1], (tail, 100 - tail), axis=0)
    return {f"R@{k}": (float(low[i]), float(high[i])) for i, k in enumerate(RECALLS)}


def gain_intervals(retrieval: Retrieval, gallery: Gallery, seed: int = 0) -> dict[str, Any]:
    """Intervals of the gain of reranked over base, as metrics.json has them under "interval"."""
    pictures = {"t2i": gallery.caption_image, "i2t": np.arange(len(gallery.image_ids))}
    out: dict[str, Any] = {"level": LEVEL, "draws": DRAWS, "seed": seed}
    for key, picture in pictures.items():
        direction = getattr(retrieval, key)
        ranks = direction.base_rank, direction.reranked_rank
        out[key] = _lists(difference_intervals(*ranks, picture, seed))
    return out


def _draw(sums: Float[np.ndarray, "c m"], rng: np.random.Generator) -> Float[np.ndarray, "r m"]:
    """Column sums over as many rows as there are, drawn with replacement, `DRAWS` times."""
    clusters = len(sums)
    out = np.empty((DRAWS, sums.shape[1]))
    block = max(1, BLOCK // clusters)
    for start in range(0, DRAWS, block):
        draws = min(block, DRAWS - start)
        chosen = rng.integers(0, clusters, (draws, clusters))
        # How often each row was drawn, one line a draw.
        places = (chosen + clusters * np.arange(draws)[:, None]).ravel()
        times = np.bincount(places, minlength=draws * clusters).reshape(draws, clusters)
        out[start : start + draws] = times @ sums
    return out


def _lists(intervals: Mapping[str, tuple[float, float]]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}


def span(interval: Sequence[float]) -> str:
    """An interval of points."""
    low, high = interval
    return f"{low:+.1f} to {high:+.1f}"
