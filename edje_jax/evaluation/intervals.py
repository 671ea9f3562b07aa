"""Intervals of a difference between two rankings: how far it would move with other images.

A paired bootstrap over images (clusters): captions of one image are no independent queries, so
images are drawn with replacement and bring all their queries along, with the ranks of both systems
on each. The interval is that of the percentiles (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, chapter 13). It covers the choice of images alone, not the seeds of training.
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
    # A cluster's column of sums: queries, then the change of each measure.
    columns = [np.ones(len(before)), *(new - old for old, new in values)]
    sums = np.stack([np.bincount(cluster, column) for column in columns], axis=1)
    changes = []
    for times in _draws(len(sums), np.random.default_rng(seed)):
        totals = times @ sums
        changes.append(totals[:, 1:] / totals[:, :1])
        for i, (old, new) in enumerate(values):
            if MEASURES[i].summary == "median":
                changes[-1][:, i] = _medians(new, cluster, times) - _medians(old, cluster, times)
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(np.concatenate(changes), (tail, 100 - tail), axis=0)
    return {measure.name: (float(low[i]), float(high[i])) for i, measure in enumerate(MEASURES)}


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
