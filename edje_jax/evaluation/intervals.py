"""Intervals of measures and of their differences: how far they would move with other images.

A bootstrap over images (clusters): captions of one image are no independent queries, so images are
drawn with replacement and bring all their queries along, with the ranks of both systems on each
where two are compared (paired). The interval is that of the percentiles (Efron and Tibshirani, An
Introduction to the Bootstrap, 1993, chapter 13). It covers the choice of images alone, not the
seeds of training.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from edje_jax.evaluation.measures import MEASURES
from edje_jax.evaluation.retrieval import DIRECTIONS, Gallery, Retrieval

DRAWS = 5000
LEVEL = 95
BLOCK = 1 << 20
"""Counts held at once while drawing."""


def difference_intervals(
    before: Int[np.ndarray, " q"],
    after: Int[np.ndarray, " q"],
    image: Int[np.ndarray, " q"],
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95% interval of the change of every measure: {"R@1": (low, high), ...}, in its unit.

    `before` and `after` are the ranks of the same queries under two systems, 0 for a query without
    a right answer, which does not count; `image` numbers each query's image.

    Raises:
        ValueError: the arrays do not fit each other, or no query counts.
    """
    if not before.shape == after.shape == image.shape:
        raise ValueError(f"ranks of {len(before)} and {len(after)} queries, {len(image)} owners")
    counted = before > 0
    if not np.array_equal(counted, after > 0):
        raise ValueError("a query counts in one of the two systems only")
    if not counted.any():
        raise ValueError("no query has a right answer; there is nothing to draw from")
    before, after = before[counted], after[counted]
    _, cluster = np.unique(image[counted], return_inverse=True)
    values = [(measure.of_ranks(before), measure.of_ranks(after)) for measure in MEASURES]
    changes = []
    differences = np.stack([new - old for old, new in values], axis=1)
    for times, means in _drawn_means(differences, cluster, seed):
        for i, (old, new) in enumerate(values):
            if MEASURES[i].summary == "median":
                means[:, i] = _medians(new, cluster, times) - _medians(old, cluster, times)
        changes.append(means)
    intervals = _middle(np.concatenate(changes))
    return dict(zip([measure.name for measure in MEASURES], intervals, strict=True))


def mean_intervals(
    values: Float[np.ndarray, "q m"], image: Int[np.ndarray, " q"], seed: int = 0
) -> list[tuple[float, float]]:
    """95% interval (low, high) of the mean of each column, which has a value a query.

    `image` numbers each query's image.

    Raises:
        ValueError: there is no query, or the arrays do not fit each other.
    """
    if not len(values) or len(values) != len(image):
        raise ValueError(f"{len(values)} queries and {len(image)} owners; one or more of each")
    _, cluster = np.unique(image, return_inverse=True)
    return _middle(np.concatenate([means for _, means in _drawn_means(values, cluster, seed)]))


def gain_intervals(retrieval: Retrieval, gallery: Gallery, seed: int = 0) -> dict[str, Any]:
    """Intervals of the gain of reranked over base, as metrics.json has them under "interval"."""
    images = {"t2i": gallery.caption_image, "i2t": np.arange(len(gallery.image_ids))}
    out: dict[str, Any] = {"level": LEVEL, "draws": DRAWS, "seed": seed}
    for key in DIRECTIONS:
        direction = getattr(retrieval, key)
        ranks = direction.base_rank, direction.reranked_rank
        found = difference_intervals(*ranks, images[key], seed)
        out[key] = {name: list(interval) for name, interval in found.items()}
    return out


def _drawn_means(
    values: Float[np.ndarray, "q m"], cluster: Int[np.ndarray, " q"], seed: int
) -> Iterator[tuple[Int[np.ndarray, "d c"], Float[np.ndarray, "d m"]]]:
    """Counts of the clusters, and means of the columns over their queries, some draws at a time."""
    # A cluster's row of sums: queries, then the values of each column.
    columns = [np.ones(len(values)), *values.T]
    sums = np.stack([np.bincount(cluster, column) for column in columns], axis=1)
    for times in _draws(len(sums), np.random.default_rng(seed)):
        totals = times @ sums
        yield times, totals[:, 1:] / totals[:, :1]


def _middle(values: Float[np.ndarray, "d m"]) -> list[tuple[float, float]]:
    """(low, high) of each column, between which the middle 95% of its values lie."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(values, (tail, 100 - tail), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _draws(clusters: int, rng: np.random.Generator) -> Iterator[Int[np.ndarray, "d c"]]:
    """Counts of how often each cluster is drawn, a row a draw, in blocks of `DRAWS` rows in all.

    A draw takes as many clusters as there are, with replacement.
    """
    block = max(1, BLOCK // clusters)
    for start in range(0, DRAWS, block):
        draws = min(block, DRAWS - start)
        chosen = rng.integers(0, clusters, (draws, clusters))
        places = (chosen + clusters * np.arange(draws)[:, None]).ravel()
        yield np.bincount(places, minlength=draws * clusters).reshape(draws, clusters)


def _medians(
    values: Float[np.ndarray, " q"],
    cluster: Int[np.ndarray, " q"],
    times: Int[np.ndarray, "d c"],
) -> Float[np.ndarray, " d"]:
    """Median of the values in every draw, where each counts as often as its cluster was drawn."""
    order = np.argsort(values)
    count = np.cumsum(times[:, cluster[order]], axis=1)
    half = count[:, -1:] / 2
    lower, upper = (count < half).sum(axis=1), (count <= half).sum(axis=1)
    return (values[order][lower] + values[order][upper]) / 2


def format_interval(interval: Sequence[float]) -> str:
    """Text of an interval: "+0.3 to +1.2"."""
    low, high = interval
    return f"{low:+.1f} to {high:+.1f}"
