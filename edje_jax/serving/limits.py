"""Limits of a request, and of the queue."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of the queue; `edje serve` has a flag for each."""

    body_bytes: int = 32 << 20
    documents: int = 1000
    """Documents of a request that reranks."""
    images: int = 64
    """Documents of a request that are sent as image data; each is decoded and encoded."""
    pixels: int = 64_000_000
    """Pixels of a sent image; each takes three bytes once it is decoded."""
    k: int = 1000
    """Candidates of a search that are reranked."""
    waiting: int = 64
    """Requests in the queue; one more gets a 429."""
    batch: int = 16
    """Requests computed together."""
    seconds: float = 30.0
    """Seconds that a search or a reranking may take once its body was read; then comes a 503."""
