"""Candidates of queries: found by a first stage, then narrowed down before they are reranked.

A first stage of codes finds many candidates by Hamming distance. They can be rescored by the
query's projection against their codes, which reads no more than codes, and are by the embeddings
that the index keeps, so that k of them, in the order of their cosines, are left to be reranked:

    n1 nearest codes  ->  n2 by projection  ->  k by embedding  ->  reranked

A first stage of embeddings finds the k nearest at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.first_stage.base import FirstStage, Nearest
from edje_jax.first_stage.packing import pack, unpack
from edje_jax.index.column import Column
from edje_jax.index.image_index import ImageIndex
from edje_jax.runtimes.base import Embedded

Similarities = Callable[[int, Int[np.ndarray, " n"]], Float32[np.ndarray, " n"]]
"""(number of a query, rows) -> similarity of the query to each row."""


@dataclass
class Candidates:
    """Candidates of some queries by falling cosine, and the seconds that each step took."""

    nearest: Nearest
    """Similarities are cosines of embeddings."""
    seconds: dict[str, float] = field(default_factory=dict)


def find_images(index: ImageIndex, queries: Embedded, k: int) -> Candidates:
    """The k best images for each text, by the index's first stage."""
    return _find(index, index.images, "embeddings", queries, k)


def find_captions(index: ImageIndex, queries: Embedded, k: int) -> Candidates:
    """The k best captions for each image."""
    return _find(index, index.texts, "captions", queries, k)


def _find(
    index: ImageIndex, stage: FirstStage, column: str, queries: Embedded, k: int
) -> Candidates:
    began = time.perf_counter()
    if index.bits is None:
        near = stage.nearest(queries.embeddings, k)
        return Candidates(near, {"first_stage": time.perf_counter() - began})
    projections = np.ascontiguousarray(queries.projections[:, : index.bits])
    depth = index.screening
    near = stage.nearest(pack(projections), max(depth.by_codes or 10 * k, k))
    out = Candidates(near, {"first_stage": time.perf_counter() - began})
    if depth.by_projection:
        by_projection = _to_codes(projections, index.codes(column))
        _rescore(out, "by_projection", by_projection, max(depth.by_projection, k))
    _rescore(out, "by_embedding", _to_embeddings(queries, index.store.column(column)), k)
    return out


def _rescore(found: Candidates, step: str, similarities: Similarities, keep: int) -> None:
    """Order each query's candidates by other similarities, and keep the best; equal ones stay in
    the order that they had."""
    began, near = time.perf_counter(), found.nearest
    keep = min(keep, near.rows.shape[1])
    rows = np.full((len(near.rows), keep), -1, near.rows.dtype)
    values = np.full(rows.shape, -np.inf, np.float32)
    for query, own in enumerate(near.rows):
        there = own[own >= 0]  # An approximate first stage may have found fewer
        new = similarities(query, there)
        order = np.argsort(-new, kind="stable")[:keep]
        rows[query, : len(order)], values[query, : len(order)] = there[order], new[order]
    found.nearest = Nearest(values, rows)
    found.seconds[step] = time.perf_counter() - began


def _to_embeddings(queries: Embedded, embeddings: Column) -> Similarities:
    """Cosines of a query's embedding and those of rows."""
    return lambda query, rows: embeddings[rows] @ queries.embeddings[query]


def _to_codes(projections: Float32[np.ndarray, "q bits"], codes: Column) -> Similarities:
    """Cosines of a query's projection and the codes of rows, as -1 and 1."""
    lengths = np.maximum(np.linalg.norm(projections, axis=1), 1e-12) * projections.shape[1] ** 0.5
    asked = projections / lengths[:, None]
    return lambda query, rows: unpack(codes[rows]).astype(np.float32) @ asked[query]
