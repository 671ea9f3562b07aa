"""What the server is asked to compute: jobs, those with one `batch_key` in one batch."""

from collections.abc import Hashable
from dataclasses import dataclass

from edje_jax.search.results import Found, Seconds
from edje_jax.serving.documents import Images


@dataclass(frozen=True)
class Search:
    """A text that looks for images."""

    query: str
    k: int

    @property
    def batch_key(self) -> Hashable:
        """Searches of one depth share their calls of the model."""
        return Search, self.k


@dataclass(frozen=True)
class Captions:
    """An image of the index that looks for captions."""

    image: int
    k: int

    @property
    def batch_key(self) -> Hashable:
        """Searches of one depth share their calls of the model."""
        return Captions, self.k


@dataclass(frozen=True)
class Rerank:
    """A text and the images to order for it."""

    query: str
    images: Images

    @property
    def batch_key(self) -> Hashable:
        """All rerankings share their calls of the model."""
        return Rerank


Job = Search | Captions | Rerank


@dataclass(frozen=True)
class Answer:
    """Of a search: its candidates, reranked, and what its batch took."""

    found: Found
    seconds: Seconds
