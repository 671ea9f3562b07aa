"""Counters for Prometheus, in a registry of their own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from edje_jax.search.results import Timings
from edje_jax.serving.tracing import add_parts

BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Upper ends of histograms of time, in seconds."""
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Monitor:
    """Counters of the work of the server."""

    def __init__(self, waiting: Callable[[], int], tracer: Any | None = None):
        self._tracer = tracer
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "edje_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "edje_request_seconds", "Until answered.", ["route"], buckets=BUCKETS, registry=registry
        )
        self._parts = Histogram(
            "edje_search_seconds", "Parts of a search, or of its batch.", ["part"],
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self._pairs = Counter("edje_pairs", "Pairs scored.", registry=registry)
        self._queue = Histogram(
            "edje_queue_seconds", "Wait of requests for their batch.", buckets=BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "edje_batch_requests", "Requests computed together.", buckets=BATCHES, registry=registry
        )
        Gauge("edje_waiting", "Requests in the queue.", registry=registry).set_function(waiting)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = scope.get("route")
        # Not the address itself, of which there may be any number.
        name = getattr(route, "path", "other")
        self._requests.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def count_batch(self, waited: Sequence[float]) -> None:
        """Count a batch, whose requests have waited so many seconds each."""
        self._batches.observe(len(waited))
        for seconds in waited:
            self._queue.observe(seconds)

    def count_search(self, seconds: Timings, pairs: int) -> None:
        """Count a search that has just been computed, and add its parts to its trace."""
        add_parts(self._tracer, seconds)
        for part, took in asdict(seconds).items():
            self._parts.labels(part).observe(took)
        self.count_pairs(pairs)

    def count_pairs(self, count: int) -> None:
        """Count scored pairs."""
        self._pairs.inc(count)

    def prometheus_text(self) -> bytes:
        """All counters in the text format of Prometheus."""
        return generate_latest(self._registry)
