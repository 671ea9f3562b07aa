"""Reranked candidates of a query, and the form in which users get them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int


@dataclass(frozen=True)
class Found:
    """The reranked candidates of one query, best first."""

    rows: Int[np.ndarray, " k"]
    """Rows of images; rows of captions if the query was an image."""
    logits: Float32[np.ndarray, " k"]
    similarities: Float32[np.ndarray, " k"]
    base_ranks: Int[np.ndarray, " k"]
    """Ranks in the first stage, from 1."""


@dataclass(frozen=True)
class Seconds:
    """Wall-clock time of a search's parts."""

    first_stage: float
    """Embedding the queries and finding their nearest."""
    gather: float
    """Reading tokens. It runs beside the reranking, of which it is a part."""
    rerank: float


def listed(found: Found, top_k: int) -> list[tuple[int, dict[str, Any]]]:
    """(row, {"score", "similarity", "base_rank"}) of a query's best."""
    scores = sigmoid(found.logits[:top_k])
    return [
        (
            int(found.rows[i]),
            {
                "score": float(scores[i]),
                "similarity": float(found.similarities[i]),
                "base_rank": int(found.base_ranks[i]),
            },
        )
        for i in range(len(scores))
    ]


def sigmoid(logits: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """1 / (1 + exp(-x)) in float32, without overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -logits)).astype(np.float32)
