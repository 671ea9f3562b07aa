"""How much a request, and all that wait, may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may ask for; `edje serve` has a flag for each."""

    body_bytes: int = 32 << 20
    documents: int = 1000
    images: int = 64
    """Of the documents, those that are sent and not indexed: each is decoded and encoded."""
    pixels: int = 64_000_000
    """Of one sent image; decoded it takes three bytes each."""
    k: int = 1000
    waiting: int = 64
    """Requests in the queue; one more gets a 429."""
    batch: int = 16
    """Requests computed together."""
    seconds: float = 30.0
    """Until a request is given up with a 503."""
