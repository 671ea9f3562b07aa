"""Queries -> candidates -> reranked results, with what each part took."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from edje_jax.first_stage.base import Nearest
from edje_jax.index.image_index import ImageIndex
from edje_jax.runtimes.jax import Engine
from edje_jax.search.results import Found, Seconds


class _Timed:
    """Tokens that know how long they were read for."""

    def __init__(self, tokens: Any):
        self._tokens, self.seconds, self.shape = tokens, 0.0, tokens.shape

    def __getitem__(self, rows: np.ndarray) -> Any:
        began = time.perf_counter()
        found = self._tokens[rows]
        self.seconds += time.perf_counter() - began
        return found


def search_images(
    engine: Engine, index: ImageIndex, queries: Sequence[str], k: int
) -> tuple[list[Found], Seconds]:
    """The k nearest pictures of each text, reranked."""
    began = time.perf_counter()
    near = index.images.nearest(engine.embed_texts(queries), k)
    first_stage = time.perf_counter() - began
    owner, rows = _pairs(near)
    tokens = _Timed(index.tokens)
    began = time.perf_counter()
    logits = engine.score_pairs(engine.joint_tokenizer(list(queries)), tokens, owner, rows)
    rerank = time.perf_counter() - began
    return _split(near, owner, logits), Seconds(first_stage, tokens.seconds, rerank)


def search_texts(
    engine: Engine,
    index: ImageIndex,
    tokens: Float32[np.ndarray, "q m d"],
    embeddings: Float32[np.ndarray, "q e"],
    k: int,
) -> tuple[list[Found], Seconds]:
    """The k nearest captions of each picture, reranked."""
    began = time.perf_counter()
    near = index.texts.nearest(embeddings, k)
    first_stage = time.perf_counter() - began
    owner, rows = _pairs(near)
    began = time.perf_counter()
    # Only those captions that are candidates are tokenised.
    wanted, place = np.unique(rows, return_inverse=True)
    captions = [index.store.captions[int(row)][1] for row in wanted]
    logits = engine.score_pairs(engine.joint_tokenizer(captions), tokens, place, owner)
    rerank = time.perf_counter() - began
    return _split(near, owner, logits), Seconds(first_stage, 0.0, rerank)


def _pairs(near: Nearest) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every candidate; an approximate first stage may have found fewer than k."""
    owner, column = np.nonzero(near.rows >= 0)
    return owner, near.rows[owner, column]


def _split(near: Nearest, owner: np.ndarray, logits: np.ndarray) -> list[Found]:
    """Each query's candidates by falling logit; equal ones keep the first stage's order."""
    out = []
    for query in range(len(near.rows)):
        own = logits[owner == query]
        order = np.argsort(-own, kind="stable")
        rows, similarities = near.rows[query][order], near.similarities[query][order]
        out.append(Found(rows, own[order], similarities, order + 1))
    return out
