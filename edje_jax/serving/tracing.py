"""Requests told apart: an id each, lines of JSON in the log, and OpenTelemetry's spans.

A request keeps the id of its X-Request-ID, or gets one; the answer carries it, and so do the lines
of the log that the server's routes write for it. Several requests are computed together, on threads
whose lines carry none.
"""

import json
import logging
import re
import time
import uuid
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any, NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edje_jax.search.results import Timings

log = logging.getLogger(__name__)

FAILED = "this server failed; its log says why"
HEADER = "X-Request-ID"
IDS = re.compile(r"[!-~]{1,128}")
"""Ids that are kept: visible ASCII, of a length that suits a log."""
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is answered."""
PARTS = ("first_stage", "by_projection", "by_embedding", "rerank", "moments")
"""Parts of a search, one after the other; the reading of tokens runs beside the reranking."""


class JsonLines(logging.Formatter):
    """Log records as lines of JSON: time (UTC, ISO 8601), level, logger, message, request, and what
    `extra={"facts": {...}}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Line of a record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := REQUEST_ID.get()) is not None:
            told["request"] = request
        told |= getattr(record, "facts", {})
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def log_lines_of_json() -> None:
    """Write the log as lines of JSON from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines())


class Watched(NamedTuple):
    """Logging and tracing of requests, beside the counters."""

    log_requests: bool = False
    """Whether each is a line of the log."""
    tracer: Any | None = None
    """OpenTelemetry's, of `make_tracer`; None makes no spans."""


class Tracing:
    """Give each request its id; log it when it is answered, if asked to; and make it a span."""

    def __init__(self, app: ASGIApp, log_requests: bool, tracer: Any | None):
        self.app, self.log_requests, self.tracer = app, log_requests, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER, "")
        own = given if IDS.fullmatch(given) else uuid.uuid4().hex
        token, began, status = REQUEST_ID.set(own), time.perf_counter(), 500

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = own
            await send(message)

        try:
            with self._span(scope, own) as span:
                await self._answer(scope, receive, named)
                if span is not None:
                    _describe(span, scope, status)
        finally:
            if self.log_requests:
                _log(scope, status, time.perf_counter() - began)
            REQUEST_ID.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with a 500 what fails, unless the answer has begun."""
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if begun:
                raise
            await JSONResponse({"detail": FAILED}, 500)(scope, receive, send)

    def _span(self, scope: Scope, own: str) -> AbstractContextManager[Any]:
        """Span of a request, a part of the client's trace if it tells of one (W3C)."""
        if self.tracer is None:
            return nullcontext()
        from opentelemetry import propagate, trace

        return self.tracer.start_as_current_span(
            scope["method"],
            context=propagate.extract(dict(Headers(scope=scope))),
            kind=trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "edje.request_id": own},
        )


def make_tracer() -> Any:
    """Tracer that sends spans by OTLP over HTTP, as OpenTelemetry's variables of the environment
    have it (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER).

    Raises:
        ImportError: the extra "otel" is not installed.
    """
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # What the environment says takes precedence.
    provider = TracerProvider(resource=Resource({"service.name": "edje"}).merge(Resource.create()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.get_tracer("edje_jax")


def add_parts(tracer: Any | None, seconds: Timings) -> None:
    """Add the parts of a search that has just been computed to the present span, end to end.

    A batch's parts are those of all its requests.
    """
    if tracer is None:
        return
    took = {name: int(1e9 * value) for name, value in asdict(seconds).items()}
    start = time.time_ns() - sum(took[name] for name in PARTS)
    for name in PARTS:
        if took[name]:
            span = tracer.start_span(name, start_time=start)
            start += took[name]
            span.end(end_time=start)


def _describe(span: Any, scope: Scope, status: int) -> None:
    from opentelemetry.trace import StatusCode

    route = _route(scope)
    span.update_name(f"{scope['method']} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def _log(scope: Scope, status: int, seconds: float) -> None:
    milliseconds = round(1e3 * seconds, 2)
    facts = {"method": scope["method"], "route": _route(scope), "path": scope["path"]}
    facts |= {"status": status, "milliseconds": milliseconds}
    log.info("%s %s %d", facts["method"], facts["path"], status, extra={"facts": facts})


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "other")
