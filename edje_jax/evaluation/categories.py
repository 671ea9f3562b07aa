"""Mean average precision by categories, as FiCo-ITR (arXiv 2407.20114) and its code measure it.

The right answers of a query are all items that share at least one of C labels with it; a caption
has the labels of its image. The average precision at k looks at the first k items alone: it is the
mean of the precisions at the places of the right answers *among them*, so that finding few costs
nothing, and 0 if there is none. A query without labels has no right answer and counts as 0, which
is why the number of such queries is told.

Equal similarities, which codes have in plenty, stand in no order. The average precision is the
exact expectation over all orders of them, each as likely. Let a group of n equal items, r of them
right, follow t others, R of them right. The precisions at the places of its right ones sum to

    sum over i = 1 .. n of  r / n * (R + 1 + (i - 1) * (r - 1) / (n - 1)) / (t + i)
      = r / n * ((R + 1) * h + (r - 1) / (n - 1) * (n - (t + 1) * h)),  h = 1 / (t + 1) + ...
                                                                            + 1 / (t + n)

in expectation. If depth k cuts a group, it holds k - t items of it, and a hypergeometric number of
right ones. A shuffled ranking is one group of all items, so "chance" is exact as well. It is high:
most images share some label with a query ("person").
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from scipy.special import betaln

from edje_jax.evaluation.similarities import Similarity, inner_products, similarity_blocks

DEPTHS = {"mAP@10": 10, "mAP@100": 100, "mAP@N": None}
"""Depths of FiCo-ITR's tables; None for all items."""


def category_metrics(
    image_vectors: Shaped[np.ndarray, "n _"],
    text_vectors: Shaped[np.ndarray, "t _"],
    caption_image: Int[np.ndarray, " t"],
    labels: Bool[np.ndarray, "n c"],
    reranked: Mapping[str, Int[np.ndarray, "q k"]] | None = None,
    similarity: Similarity = inner_products,
) -> dict[str, dict[str, Any]]:
    """{"t2i": `direction_metrics`, "i2t": `direction_metrics`} of an exact search.

    `reranked` maps each direction to the items that stand first in its rankings, a row a caption or
    a row an image. An image without captions is an item and no query, as in every measure.

    Raises:
        ValueError: there are not as many rows of labels as images, or as `direction_metrics`.
    """
    if len(labels) != len(image_vectors):
        raise ValueError(f"labels of {len(labels)} images for a gallery of {len(image_vectors)}")
    front = reranked or {}
    numbers, asked = np.arange(len(image_vectors)), np.unique(caption_image)
    from_image = front["i2t"][asked] if "i2t" in front else None
    t2i = (text_vectors, image_vectors, caption_image, numbers, labels, front.get("t2i"))
    i2t = (image_vectors[asked], text_vectors, asked, caption_image, labels, from_image)
    return {
        "t2i": direction_metrics(*t2i, similarity),
        "i2t": direction_metrics(*i2t, similarity),
    }


def direction_metrics(
    queries: Shaped[np.ndarray, "q _"],
    items: Shaped[np.ndarray, "g _"],
    query_image: Int[np.ndarray, " q"],
    item_image: Int[np.ndarray, " g"],
    labels: Bool[np.ndarray, "n c"],
    front: Int[np.ndarray, "q k"] | None = None,
    similarity: Similarity = inner_products,
) -> dict[str, Any]:
    """{"mAP@10", "mAP@100", "mAP@N", "chance", "queries", "queries_without_labels"}.

    Means are in percent; "chance" is the mAP@N of a shuffled ranking. `labels` are those of the
    images, which `query_image` and `item_image` number. The items in `front`, k different ones a
    query, stand first and in that order. Works through the queries in blocks, so memory does not
    grow with q * g.

    Raises:
        ValueError: `front` has other rows than one a query, or a row has an item twice.
    """
    front = np.empty((len(queries), 0), np.int32) if front is None else front
    if len(front) != len(queries) or (np.diff(np.sort(front, axis=1), axis=1) == 0).any():
        raise ValueError(
            f"reranked items of shape {front.shape} for {len(queries)} queries; give a row for each"
            " query, without repeating an item in it"
        )
    by_label = labels.astype(np.float32)
    found = np.empty((len(queries), len(DEPTHS) + 1))
    for rows, near in similarity_blocks(queries, items, similarity):
        shared = by_label[query_image[rows]] @ by_label.T > 0
        relevant = shared[:, item_image]
        found[rows, :-1] = expected_precisions(*_ranked(near, relevant, front[rows]))
        found[rows, -1] = chance(relevant.sum(axis=1), len(items))
    means = dict(zip((*DEPTHS, "chance"), (100 * found.mean(axis=0)).tolist(), strict=True))
    unlabelled = int((labels.sum(axis=1)[query_image] == 0).sum())
    return {**means, "queries": len(queries), "queries_without_labels": unlabelled}


def chance(right: Int[np.ndarray, " q"], items: int) -> Float64[np.ndarray, " q"]:
    """Expected average precision at N of a shuffled ranking with so many right answers."""
    none = np.zeros_like(right)
    sums = _precision_sums(none, np.full_like(right, items), none, right, _harmonic(items))
    return sums / np.maximum(right, 1)


def expected_precisions(
    relevant: Bool[np.ndarray, "q g"], begins: Bool[np.ndarray, "q g"]
) -> Float64[np.ndarray, "q d"]:
    """Expected average precisions of rankings, a column for each of `DEPTHS`.

    `relevant` tells the right answers in ranking order; `begins` is True where an item is not equal
    to the one before it, and so in the first column.
    """
    q, g = relevant.shape
    start = np.flatnonzero(begins)
    size, right = np.diff(start, append=q * g), np.add.reduceat(relevant.ravel(), start, dtype=int)
    # Groups without a right answer add nothing to any sum.
    start, size, right = (values[right > 0] for values in (start, size, right))
    row, before = np.divmod(start, g)
    in_row = relevant.sum(axis=1)
    above = np.cumsum(right) - right - (np.cumsum(in_row) - in_row)[row]
    harmonic = _harmonic(g)
    sums = _precision_sums(before, size, above, right, harmonic)
    out = np.empty((q, len(DEPTHS)))
    for column, depth in enumerate(DEPTHS.values()):
        k = min(depth or g, g)
        whole = before + size <= k
        total = np.bincount(row[whole], sums[whole], minlength=q)
        out[:, column] = total / np.maximum(np.bincount(row[whole], right[whole], minlength=q), 1)
        cut = (before < k) & ~whole
        out[row[cut], column] = _cut_short(
            total[row[cut]], before[cut], size[cut], above[cut], right[cut], k, harmonic
        )
    return out


def _ranked(
    near: Float[np.ndarray, "q g"],
    relevant: Bool[np.ndarray, "q g"],
    front: Int[np.ndarray, "q k"],
) -> tuple[Bool[np.ndarray, "q g"], Bool[np.ndarray, "q g"]]:
    """Right answers in ranking order, and the beginnings of groups of equal items.

    The items of `front` come first, each a group of its own, then the others by similarity.
    """
    k = front.shape[1]
    far = -near
    np.put_along_axis(far, front, np.inf, axis=1)
    rest = np.argsort(far, axis=1)[:, : far.shape[1] - k]
    order = np.concatenate([front, rest], axis=1)
    far = np.take_along_axis(far, order, axis=1)
    begins = np.ones(far.shape, bool)
    begins[:, 1:] = far[:, 1:] != far[:, :-1]
    begins[:, : k + 1] = True
    return np.take_along_axis(relevant, order, axis=1), begins


def _precision_sums(
    before: Int[np.ndarray, "..."],
    size: Int[np.ndarray, "..."],
    above: Int[np.ndarray, "..."],
    right: Int[np.ndarray, "..."],
    harmonic: Float64[np.ndarray, " g+1"],
) -> Float64[np.ndarray, "..."]:
    """Expected sum of the precisions at the right ones of a group of equal items: the formula above
    of t, n, R and r."""
    h = harmonic[before + size] - harmonic[before]
    slope = (right - 1) / np.maximum(size - 1, 1)
    return right / size * ((above + 1) * h + slope * (size - (before + 1) * h))


def _cut_short(
    total: Float64[np.ndarray, " c"],
    before: Int[np.ndarray, " c"],
    size: Int[np.ndarray, " c"],
    above: Int[np.ndarray, " c"],
    right: Int[np.ndarray, " c"],
    k: int,
    harmonic: Float64[np.ndarray, " g+1"],
) -> Float64[np.ndarray, " c"]:
    """Expected average precision at k of rankings whose last group depth k cuts.

    `total` is the sum of the precisions in the groups above it.
    """
    before, size, above, right = (x[:, None] for x in (before, size, above, right))
    inside = k - before
    m = np.arange(k + 1)
    possible = (m <= right) & (m <= inside) & (inside - m <= size - right)
    # Outside of what is possible any number will do.
    log = _log_choose(right, np.minimum(m, right)) + _log_choose(
        size - right, np.clip(inside - m, 0, size - right)
    )
    weight = np.where(possible, np.exp(log - _log_choose(size, inside)), 0)
    sums = total[:, None] + _precision_sums(before, inside, above, m, harmonic)
    return (weight * sums / np.maximum(above + m, 1)).sum(axis=1)


def _log_choose(n: Int[np.ndarray, "..."], k: Int[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return -np.log1p(n) - betaln(n - k + 1, k + 1)


def _harmonic(g: int) -> Float64[np.ndarray, " g+1"]:
    """Sums of 1 / i over i = 1 .. n, for n = 0 .. g."""
    return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, g + 1))])
