"""Counters for Prometheus, in a registry of their own."""

from collections.abc import Callable
from dataclasses import asdict

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

from edje_jax.search.results import Timings

BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Monitor:
    """Counters of the work of the server."""

    def __init__(self, waiting: Callable[[], int]):
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
        Gauge("edje_waiting", "Requests in the queue.", registry=registry).set_function(waiting)

    def request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = scope.get("route")
        # Not the address itself, of which there may be any number.
        name = getattr(route, "path", "other")
        self._requests.labels(name, str(status)).inc()
        self._seconds.labels(name).observe(seconds)

    def answer(self, seconds: Timings, pairs: int) -> None:
        """Count an answered search."""
        for part, took in asdict(seconds).items():
            self._parts.labels(part).observe(took)
        self.pairs(pairs)

    def pairs(self, count: int) -> None:
        """Count scored pairs."""
        self._pairs.inc(count)

    def page(self) -> bytes:
        """All counters in the text format of Prometheus."""
        return generate_latest(self._registry)
