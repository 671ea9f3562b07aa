"""Requests told apart: ids, lines of JSON, spans, and histograms of every stage."""

import json
import logging

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from edje_jax.serving.app import make_app
from edje_jax.serving.tracing import JsonLines, Watched

SEARCH = {"query": "a red circle left of a blue square", "k": 5}


class Lines(logging.Handler):
    """Lines that a log in JSON would hold."""

    def __init__(self):
        super().__init__()
        self.setFormatter(JsonLines())
        self.told: list[dict] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(json.loads(self.format(record)))


@pytest.fixture
def lines():
    handler, log = Lines(), logging.getLogger("edje_jax.serving.tracing")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.told
    log.removeHandler(handler)
    log.setLevel(before)


def test_an_id_is_kept_or_given_and_stands_in_the_answer_and_in_the_log(service, lines):
    with TestClient(make_app(service, watched=Watched(log_requests=True))) as client:
        kept = client.post("/search", json=SEARCH, headers={"X-Request-ID": "shop-17"})
        given = [client.get("/nothing").headers["x-request-id"] for _ in range(2)]
        refused = client.get("/health", headers={"X-Request-ID": "x" * 129})
    assert kept.headers["x-request-id"] == "shop-17"
    assert len({*given, refused.headers["x-request-id"]}) == 3
    assert all(len(one) == 32 for one in given)
    first, second, *_ = lines
    assert first["request"] == "shop-17" and first["level"] == "info"
    assert (first["method"], first["route"], first["status"]) == ("POST", "/search", 200)
    assert first["milliseconds"] > 0 and first["time"].endswith("Z")
    assert (second["route"], second["path"], second["status"]) == ("other", "/nothing", 404)


def test_nothing_is_logged_of_requests_unless_asked_for(service, lines):
    with TestClient(make_app(service)) as client:
        assert client.get("/health").headers["x-request-id"]
    assert lines == []


def test_lines_of_json_hold_exceptions_and_odd_characters():
    try:
        raise ValueError('a "quoted"\nline')
    except ValueError as error:
        facts = (type(error), error, error.__traceback__)
    record = logging.LogRecord("edje", logging.ERROR, "f", 1, "failed: %s", ("\ud800",), facts)
    line = JsonLines().format(record)
    told = json.loads(line)
    assert "\n" not in line and told["message"] == "failed: \ud800" and "request" not in told
    assert told["exception"].endswith('ValueError: a "quoted"\nline')


def test_a_search_is_a_span_of_the_clients_trace_with_its_parts(service):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    watched = Watched(tracer=provider.get_tracer("test"))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with TestClient(make_app(service, watched=watched)) as client:
        client.post("/search", json=SEARCH, headers={"traceparent": f"00-{trace}-{parent}-01"})
        client.get("/nothing")
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans["POST /search"]
    assert f"{request.context.trace_id:032x}" == trace
    assert f"{request.parent.span_id:016x}" == parent
    assert request.attributes["http.response.status_code"] == 200
    for part in ("first_stage", "rerank"):
        assert spans[part].parent.span_id == request.context.span_id
        assert request.start_time <= spans[part].start_time < spans[part].end_time
    assert spans["first_stage"].end_time <= spans["rerank"].start_time
    assert spans["rerank"].end_time <= request.end_time
    assert spans["GET other"].attributes["http.response.status_code"] == 404


def test_a_request_that_fails_keeps_its_id_and_is_logged_with_its_reason(
    service, lines, monkeypatch
):
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def break_down(*_):
        raise RuntimeError("out of paper")

    monkeypatch.setattr(type(service), "results", break_down)
    watched = Watched(True, provider.get_tracer("test"))
    with TestClient(make_app(service, watched=watched)) as client:
        answer = client.post("/search", json=SEARCH, headers={"X-Request-ID": "shop-18"})
        counted = client.get("/metrics").text
    assert answer.status_code == 500 and "its log says why" in answer.json()["detail"]
    assert answer.headers["x-request-id"] == "shop-18"
    failure, line = lines[:2]
    assert failure["request"] == line["request"] == "shop-18"
    assert failure["exception"].endswith("RuntimeError: out of paper")
    assert (failure["level"], line["status"], line["route"]) == ("error", 500, "/search")
    (span,) = [one for one in exporter.get_finished_spans() if one.name == "POST /search"]
    assert not span.status.is_ok
    assert 'edje_requests_total{route="/search",status="500"} 1.0' in counted


def test_waiting_and_batches_are_histograms(service):
    with TestClient(make_app(service)) as client:
        for _ in range(3):
            client.post("/search", json=SEARCH)
        told = client.get("/metrics").text
    assert "edje_queue_seconds_count 3.0" in told
    assert "edje_batch_requests_sum 3.0" in told
    for part in ("first_stage", "gather", "rerank"):
        assert f'edje_search_seconds_count{{part="{part}"}} 3.0' in told
