"""Candidates of queries: found by a first stage, then narrowed down before they are reranked.

A first stage of codes finds many candidates by Hamming distance. They can be rescored by the
query's projection against their codes, which reads no more than codes, and are by embeddings, so
that k of them, in the order of their cosines, are left to be reranked:

    n1 nearest codes  ->  n2 by projection  ->  k by embedding  ->  reranked

A first stage of embeddings finds the k nearest at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float32, Int

from edje_jax.first_stage.base import Nearest
from edje_jax.first_stage.packing import pack, unpack

Similarities = Callable[[int, np.ndarray], Float32[np.ndarray, " n"]]
"""(number of a query, n rows of a table) -> similarity of the query to each."""


@dataclass(frozen=True)
class Screening:
    """Numbers of candidates that a first stage of codes goes through before k are reranked."""

    by_codes: int | None = None
    """Candidates by Hamming distance (default: ten times k)."""
    by_projection: int | None = None
    """Candidates that are kept of these by the query's projection against their codes (default:
    all of them, without that step)."""

    def __post_init__(self):
        for name in ("by_codes", "by_projection"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} {value}: candidates count from 1")

    def depth(self, k: int) -> int:
        """Candidates by Hamming distance for k that are reranked."""
        return max(self.by_codes or 10 * k, k)


READ = 1 << 15
"""Candidates whose rows are read at once: embeddings of 768 numbers take 100 MB."""

PLAIN = Screening()
"""The numbers of candidates that are taken where none are given."""


class RowTable(Protocol):
    """Table whose rows are taken by their numbers: an array, or a column of an index."""

    def __getitem__(self, rows: Int[np.ndarray, " n"], /) -> np.ndarray: ...


class Finder(Protocol):
    """Whatever finds the rows nearest to queries: a first stage, alone or over an index."""

    def nearest(self, queries: np.ndarray, k: int, chosen: Any = None, /) -> Nearest:
        """The k nearest rows of each query, among the chosen ones if some are, in a form of its
        own."""
        ...


@dataclass(frozen=True)
class Searched:
    """A first stage with the rows that it finds: embeddings, and codes where it reads these."""

    stage: Finder
    embeddings: RowTable
    codes: RowTable | None = None
    bits: int | None = None
    """Length of the codes; None where the first stage reads embeddings."""
    screening: Screening = PLAIN

    def depth(self, k: int) -> int:
        """Rows that are asked of the first stage for k that are reranked."""
        return k if self.bits is None else self.screening.depth(k)

    def candidates(
        self,
        embeddings: Float32[np.ndarray, "q e"],
        projections: Float32[np.ndarray, "q bits"],
        k: int,
        chosen: Any = None,
    ) -> tuple[Nearest, dict[str, float]]:
        """The k best rows of each query by falling cosine, and the seconds of each step:
        "first_stage", and "by_projection" and "by_embedding" where codes were rescored.

        `chosen` are the rows that may be found, as the first stage takes them.
        """
        began = time.perf_counter()
        if self.bits is None or self.codes is None:
            near = self.stage.nearest(embeddings, self.depth(k), chosen)
            return near, {"first_stage": time.perf_counter() - began}
        asked = np.ascontiguousarray(projections[:, : self.bits])
        near = self.stage.nearest(pack(asked), self.depth(k), chosen)
        seconds = {"first_stage": time.perf_counter() - began}
        if keep := self.screening.by_projection:
            began = time.perf_counter()
            near = rescored(near, self.codes, _to_codes(asked), max(keep, k))
            seconds["by_projection"] = time.perf_counter() - began
        began = time.perf_counter()
        near = rescored(near, self.embeddings, lambda query, rows: rows @ embeddings[query], k)
        seconds["by_embedding"] = time.perf_counter() - began
        return near, seconds


def rescored(near: Nearest, table: RowTable, similarities: Similarities, keep: int) -> Nearest:
    """The best rows of each query by other similarities; equal ones stay in the order they had.

    Rows that several queries have found are read once.
    """
    keep = min(keep, near.rows.shape[1])
    rows = np.full((len(near.rows), keep), -1, near.rows.dtype)
    values = np.full(rows.shape, -np.inf, np.float32)
    together = max(1, READ // max(near.rows.shape[1], 1))
    for start in range(0, len(rows), together):
        some = near.rows[start : start + together]
        wanted = np.unique(some[some >= 0])
        read = table[wanted]
        for query, own in enumerate(some, start):
            there = own[own >= 0]  # An approximate first stage may have found fewer
            new = similarities(query, read[np.searchsorted(wanted, there)])
            order = np.argsort(-new, kind="stable")[:keep]
            rows[query, : len(order)], values[query, : len(order)] = there[order], new[order]
    return Nearest(values, rows)


def _to_codes(projections: Float32[np.ndarray, "q bits"]) -> Similarities:
    """Cosines of a query's projection and packed codes, as -1 and 1."""
    lengths = np.maximum(np.linalg.norm(projections, axis=1), 1e-12) * projections.shape[1] ** 0.5
    asked = projections / lengths[:, None]
    return lambda query, codes: unpack(codes).astype(np.float32) @ asked[query]
