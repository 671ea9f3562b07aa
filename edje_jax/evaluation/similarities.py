"""Similarities of queries to all items, in blocks: inner products, or those of other codes."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float, Shaped

Similarity = Callable[
    [Shaped[np.ndarray, "q _"], Shaped[np.ndarray, "g _"]],
    Float[np.ndarray, "q g"],
]
"""(some queries, all items), a row each -> how near each item is to each query; near is high."""

BLOCK_SIMILARITIES = 1 << 22
"""Similarities held at once; a block is as many whole queries as fit, and at least one."""


def inner_products(
    queries: Float[np.ndarray, "q e"], items: Float[np.ndarray, "g e"]
) -> Float[np.ndarray, "q g"]:
    """Inner products of every query with every item: cosines of unit-length embeddings."""
    return queries @ items.T


def similarity_blocks(
    queries: Shaped[np.ndarray, "q _"],
    items: Shaped[np.ndarray, "g _"],
    similarity: Similarity = inner_products,
) -> Iterator[tuple[slice, Float[np.ndarray, "b g"]]]:
    """Similarities of some queries at a time to all items: (which queries, similarities)."""
    block = max(1, BLOCK_SIMILARITIES // len(items))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        yield rows, similarity(queries[rows], items)
