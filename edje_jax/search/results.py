"""Reranked candidates of a query, and the form in which users get them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from edje_jax.index.image_index import ImageIndex


@dataclass(frozen=True)
class RankedCandidates:
    """Reranked candidates of one query, best first."""

    rows: Int[np.ndarray, " k"]
    """Rows of images; rows of captions if the query was an image."""
    logits: Float32[np.ndarray, " k"]
    """Match logits, before the first stage's cosine is mixed in; combined logits of a query of
    several parts, and of two models."""
    scores: Float32[np.ndarray, " k"]
    """Falling, from 0 to 1: the sigmoid of what candidates are ordered by, once calibrated. Behind
    a second model they fall among the candidates that it has scored, and then among the rest."""
    similarities: Float32[np.ndarray, " k"]
    base_ranks: Int[np.ndarray, " k"]
    """Ranks in the first stage, from 1."""


@dataclass(frozen=True)
class Timings:
    """Wall-clock time of a search's parts."""

    first_stage: float
    """Embedding of the queries, and search for their nearest rows."""
    by_projection: float
    """Rescoring of candidates by the query's projection against codes; 0 where there is none."""
    by_embedding: float
    """Rescoring of candidates that codes have found by embeddings; 0 where there is none."""
    gather: float
    """Reading of tokens, which runs beside the reranking and is a part of it."""
    rerank: float
    moments: float = 0.0
    """Second pass over the results that are shown, which tells their moments; 0 where there is
    none."""

    @classmethod
    def of(cls, seconds: dict[str, float], candidates: dict[str, float]) -> "Timings":
        """Timings from those of the reranking, "embed", "gather" and "rerank", and of the search
        for candidates."""
        return cls(
            seconds["embed"] + candidates["first_stage"],
            candidates.get("by_projection", 0.0),
            candidates.get("by_embedding", 0.0),
            seconds["gather"],
            seconds["rerank"],
        )


def to_results(
    found: RankedCandidates, top_k: int | None, min_score: float | None = None
) -> list[tuple[int, dict[str, Any]]]:
    """Best results of a query as (row, {"score", "similarity", "base_rank"}); with `min_score` only
    results that reach it, which may be none; all results without a `top_k`."""
    places = np.arange(len(found.scores))
    if min_score is not None:
        places = places[found.scores >= min_score]
    return [
        (
            int(found.rows[i]),
            {
                "score": float(found.scores[i]),
                "similarity": float(found.similarities[i]),
                "base_rank": int(found.base_ranks[i]),
            },
        )
        for i in places[:top_k]
    ]


def ranked(
    combined: Float[np.ndarray, " n"], scores: Float32[np.ndarray, " n"], top_k: int | None
) -> list[dict[str, Any]]:
    """Results of `Reranker.rank`, by falling logit; all of them without a `top_k`.

    Raises:
        ValueError: `top_k` is below 0.
    """
    _check_top_k(top_k)
    order = np.argsort(-combined, kind="stable")[:top_k]
    return [{"corpus_id": int(i), "score": float(scores[i])} for i in order]


def _check_top_k(top_k: int | None) -> None:
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k {top_k}: the least number of results is 0; None gives all")


def check_limits(k: int, top_k: int | None, min_score: float | None) -> None:
    """Refuse numbers of candidates and of results, and a least score, that make no sense.

    Raises:
        ValueError: `k` is below 1, `top_k` below 0, or `min_score` not from 0 to 1.
    """
    if k < 1:
        raise ValueError(f"k {k}: the least number of candidates is 1")
    _check_top_k(top_k)
    if min_score is not None and not 0 <= min_score <= 1:
        raise ValueError(f"min_score {min_score}: scores lie from 0 to 1")


def with_details(
    results: list[list[dict[str, Any]]], index: ImageIndex, seconds: dict[str, float]
) -> list[list[dict[str, Any]]]:
    """Results that also tell how they were found."""
    name = f"{index.first_stage}-{index.bits}" if index.bits else index.first_stage
    told = {"first_stage": name, "seconds": seconds}
    return [[{**one, **told} for one in found] for found in results]
