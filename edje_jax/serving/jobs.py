"""Jobs of the server; jobs with the same `batch_key` are computed in one batch."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from edje_jax.search.moments import Moment
from edje_jax.search.query import Query
from edje_jax.search.results import RankedCandidates, Timings
from edje_jax.serving.documents import Images


@dataclass(frozen=True)
class SearchJob:
    """Search for the images that match a query."""

    query: str | Query
    k: int
    ids: tuple[str, ...] | None = None
    """Images that may be found; None if all may."""
    where: str | None = None
    """Filter of the images that may be found."""
    shown: int = 10
    """Best results of which moments are told, where they are videos."""
    min_score: float | None = None
    """Least score of those results; None for any."""

    @property
    def batch_key(self) -> Hashable:
        """Searches of the same depth among the same images share their calls of the model, but for
        those by queries of several parts."""
        if isinstance(self.query, Query):
            return id(self)
        return SearchJob, self.k, self.ids, self.where


@dataclass(frozen=True)
class CaptionsJob:
    """Search for the captions that match an image of the index."""

    image: int
    k: int
    ids: tuple[str, ...] | None = None
    """Images whose captions may be found; None if all may."""
    where: str | None = None
    """Filter of these images."""

    @property
    def batch_key(self) -> Hashable:
        """Searches of the same depth among the same images share their calls of the model."""
        return CaptionsJob, self.k, self.ids, self.where


@dataclass(frozen=True)
class RerankJob:
    """Reranking of images by how they match a query."""

    query: str | Query
    images: Images

    @property
    def batch_key(self) -> Hashable:
        """All rerankings share their calls of the model, but for those by queries of several
        parts."""
        return id(self) if isinstance(self.query, Query) else RerankJob


Job = SearchJob | CaptionsJob | RerankJob


@dataclass(frozen=True)
class Answer:
    """Result of a search: its reranked candidates, and the seconds of its batch."""

    found: RankedCandidates
    seconds: Timings
    moments: Mapping[int, Moment] = field(default_factory=dict)
    """Moments of the best images that are videos, by their rows."""


@dataclass(frozen=True)
class Reranked:
    """Result of a reranking, image by image in the order of the request."""

    logits: Float32[np.ndarray, " n"]
    """Match logits."""
    combined: Float32[np.ndarray, " n"]
    """Match logits with the first stage's cosine mixed in, as the model was tuned: what images are
    ordered by. The logits of a query of several parts are combined ones already."""
    scores: Float32[np.ndarray, " n"]
    """Scores from 0 to 1."""
