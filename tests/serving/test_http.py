"""HTTP behaviour that clients, browsers and proxies expect of a server.

Covers serving/middleware.py, serving/routes/status.py and serving/schemas.py.
"""

import gzip
import http.client
import json
import threading
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from edje_jax.serving.app import make_app
from edje_jax.serving.limits import Limits
from edje_jax.serving.service import Service
from tests.serving.test_page import Server

QUERY = "a red circle"
IDS = ["0.png", "1.png"]


@pytest.fixture(scope="module")
def client(service) -> Iterator[TestClient]:
    with TestClient(make_app(service)) as client:
        yield client


@pytest.fixture(scope="module")
def scores(client) -> list[float]:
    """Scores of `IDS`, in their order."""
    return scores_of(client.post("/rerank", json={"query": QUERY, "documents": IDS}))


def scores_of(answer) -> list[float]:
    assert answer.status_code == 200, answer.text
    results = sorted(answer.json()["results"], key=lambda one: one["index"])
    return [one["relevance_score"] for one in results]


@pytest.mark.parametrize(
    "query",
    [
        {"text": QUERY},
        {"content": QUERY},
        {"content": [{"type": "text", "text": QUERY}]},
        {"type": "text", "text": QUERY},
    ],
)
def test_a_query_may_be_an_object(client, scores, query):
    asked = {"query": query, "documents": IDS}
    assert scores_of(client.post("/v1/rerank", json=asked)) == pytest.approx(scores, abs=1e-6)
    assert client.post("/search", json={"query": query}).json()["query"] == QUERY


@pytest.mark.parametrize(
    ("top_n", "count"), [(0, 2), (None, 2), ("2", 2), (99, 2), (1, 1), (10**40, 2), (-1, None)]
)
def test_top_n(client, top_n, count):
    answer = client.post("/rerank", json={"query": QUERY, "documents": IDS, "top_n": top_n})
    if count is None:
        assert answer.json()["detail"][0]["where"] == "body.top_n"
    else:
        assert len(answer.json()["results"]) == count


def test_one_object_of_parts_is_a_list_of_documents(client, scores):
    """vLLM's form: each part is a document of its own."""
    parts = [{"type": "text", "text": name} for name in IDS]
    answer = client.post("/rerank", json={"query": QUERY, "documents": {"content": parts}})
    assert scores_of(answer) == pytest.approx(scores, abs=1e-6)
    parts[1]["text"] = "a caption"
    answer = client.post("/rerank", json={"query": QUERY, "documents": {"content": parts}})
    assert answer.json()["detail"].startswith("documents[1]: a text")


@pytest.mark.parametrize("route", ["/rerank", "/v1/rerank"])
def test_texts_are_answered_as_text_embeddings_inference_does(client, scores, route):
    asked = {"query": QUERY, "texts": IDS, "raw_scores": False, "return_text": False}
    answer = client.post(route, json=asked | {"truncate": True}).json()
    assert [set(one) for one in answer] == [{"index", "score"}] * 2
    assert [one["score"] for one in answer] == sorted(scores, reverse=True)
    assert {one["index"] for one in answer} == {0, 1}
    answer = client.post(route, json=asked | {"return_text": True, "raw_scores": True}).json()
    assert all(one["text"] == IDS[one["index"]] for one in answer)
    answer = client.post(route, json=asked | {"texts": ["a caption", *IDS, "another"]})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("texts[0], texts[3]: a text; this model ranks images")


def test_documents_or_texts_and_not_both(client):
    for more in ({}, {"documents": IDS, "texts": IDS}, {"documents": None}):
        answer = client.post("/rerank", json={"query": QUERY} | more)
        assert answer.status_code == 422 and "images" in answer.json()["detail"][0]["what"]
    for documents in ([], "0.png", {"content": "0.png"}):
        answer = client.post("/rerank", json={"query": QUERY, "documents": documents})
        assert [told["where"] for told in answer.json()["detail"]] == ["body.documents"]


def test_any_content_type_is_json_and_a_malformed_body_is_told_where(client, scores):
    body = json.dumps({"query": QUERY, "documents": IDS})
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; x=y", ""):
        answer = client.post("/rerank", content=body, headers={"content-type": kind})
        assert scores_of(answer) == pytest.approx(scores, abs=1e-6)
    for route in ("/rerank", "/search", "/captions"):
        answer = client.post(route, content=body[:-1])
        (told,) = answer.json()["detail"]
        assert answer.status_code == 422 and told["where"] == "body"
        assert f"line 1, column {len(body)} (character {len(body) - 1})" in told["what"]
        (told,) = client.post(route, content=b"").json()["detail"]
        assert told == {"where": "body", "what": "the body is empty; send a JSON object"}
        (told,) = client.post(route, content=b"[" * 100_000).json()["detail"]
        assert "nested too deep" in told["what"]


def test_a_compressed_body_is_told_so(client):
    body = gzip.compress(json.dumps({"query": QUERY, "documents": IDS}).encode())
    answer = client.post("/rerank", content=body, headers={"content-encoding": "gzip"})
    (told,) = answer.json()["detail"]
    assert told["what"] == "Content-Encoding gzip is not read; send plain JSON"


def test_ids_may_be_numbers_in_captions_too(client):
    answer = client.post("/captions", json={"id": 391895})
    assert answer.status_code == 404


def test_head_is_get_without_a_body(client):
    for path in ("/", "/health", "/healthz", "/ready", "/info", "/v1/models", "/metrics",
                 "/images/3.png", "/openapi.json"):  # fmt: skip
        whole, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path not in ("/metrics", "/healthz"):
            assert head.headers["content-length"] == str(len(whole.content))
    assert client.head("/images/none").status_code == 404
    assert client.head("/rerank").status_code == 405


def test_models_and_answers_name_the_model_and_no_path(client, service, trained):
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == service.name == trained.name and model["object"] == "model"
    answer = client.post("/rerank", json={"query": QUERY, "documents": IDS}).json()
    assert answer["model"] == service.name
    assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 0
    assert client.get("/info").json()["model"] == service.name


def test_ready_says_503_until_every_shape_is_compiled(service):
    compiling = threading.Event()

    class Cold(Service):
        def warm(self, ks=()):
            compiling.wait(20)

    with TestClient(make_app(Cold(service.reranker, service.index), warm=True)) as client:
        answer = client.get("/ready")
        assert answer.status_code == 503 and answer.headers["retry-after"]
        assert client.get("/health").status_code == client.head("/healthz").status_code == 200
        compiling.set()
        # What is asked meanwhile is answered when that is done.
        assert client.post("/search", json={"query": QUERY, "k": 3}).status_code == 200
        assert client.get("/ready").json() == {"status": "ready"}


def test_pages_of_other_origins_may_ask_where_they_are_named(service):
    shop = "https://shop.example"
    asks = {
        "Origin": shop, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }  # fmt: skip
    asked = {"query": QUERY, "documents": IDS}
    app = make_app(service, api_key="sesame", cors_origins=[shop])
    with TestClient(app) as client:
        preflight = client.options("/v1/rerank", headers=asks)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == shop
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert client.options("/rerank", headers=asks | {"Origin": "https://b"}).status_code == 400
        key = {"Authorization": "Bearer sesame", "Origin": shop}
        answer = client.post("/v1/rerank", json=asked, headers=key)
        assert answer.headers["access-control-allow-origin"] == shop
        # A page is told why it is refused, too.
        answer = client.post("/v1/rerank", json=asked, headers={"Origin": shop})
        assert answer.status_code == 401
        assert answer.headers["access-control-allow-origin"] == shop
    with TestClient(make_app(service)) as client:
        answer = client.post("/v1/rerank", json=asked, headers={"Origin": shop})
        assert "access-control-allow-origin" not in answer.headers


def test_below_the_path_of_a_proxy(service):
    """Whether the proxy takes its path away or leaves it."""
    with TestClient(make_app(service, root_path="/find", api_key="sesame")) as client:
        for path in ("/", "/find/"):
            assert '<base href="/find/">' in client.get(path).text
        key = {"X-API-Key": "sesame"}
        for path in ("/info", "/find/info", "/find/images/3.png", "/images/3.png"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers=key).status_code == 200
        assert client.get("/find/health").status_code == client.get("/find").status_code == 200
        document = client.get("/openapi.json", headers=key).json()
        assert document["servers"] == [{"url": "/find"}]


def test_a_proxys_path_may_be_called_as_a_route_is(service):
    asked = {"query": QUERY, "documents": IDS}
    for root_path, path in (("/search", "/search"), ("/v1", "/v1/rerank"), ("/images", "/search")):
        with TestClient(make_app(service, root_path=root_path)) as client:
            for sent in (path, root_path + path):
                assert client.post(sent, json=asked).status_code == 200, (root_path, sent)
            for name in ("/images/3.png", "/v1/models"):
                assert client.get(name).status_code == 200, (root_path, name)
                assert client.get(root_path + name).status_code == 200, (root_path, name)
            assert "<base" in client.get(root_path).text


@pytest.mark.parametrize(
    "path", ["/rerank/", "//rerank", "/v1/rerank/", "/v1//rerank", "/find/v2/rerank//"]
)
def test_slashes_too_many_are_left_out(service, scores, path):
    """A redirection would lose the key, and name an address that a proxy does not have."""
    asked, path = {"query": QUERY, "documents": IDS}, f"http://testserver{path}"
    with TestClient(make_app(service, root_path="/find"), follow_redirects=False) as client:
        assert scores_of(client.post(path, json=asked)) == pytest.approx(scores, abs=1e-6)
        assert client.get(path).status_code == 405
        assert client.head("/health/").status_code == client.get("/v1/models/").status_code == 200
        # Not of an id, which may have as many.
        assert client.get("/images/3.png/").status_code == 404


def test_the_openapi_document_holds_answers_and_limits(service):
    limits = Limits(documents=7, images=5, pixels=1234, k=11, body_bytes=4321)
    with TestClient(make_app(service, limits=limits)) as client:
        document = client.get("/openapi.json").json()
        assert client.get("/openapi.json").json() == document
    schemas, paths = document["components"]["schemas"], document["paths"]
    rerank = schemas["RerankRequest"]["properties"]
    documents, parts, _ = rerank["documents"]["anyOf"]
    for one in (documents, parts["properties"]["content"], rerank["texts"]["anyOf"][0]):
        assert one["maxItems"] == 7
    assert schemas["SearchRequest"]["properties"]["k"]["maximum"] == 11
    for value in ("5", "1234", "4321"):
        assert value in rerank["documents"]["description"]
    for route in ("/rerank", "/v1/rerank", "/v2/rerank"):
        content = paths[route]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert content["anyOf"][0] == {"$ref": "#/components/schemas/RerankAnswer"}
        asked = paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert asked == {"$ref": "#/components/schemas/RerankRequest"}
    for route, answer in (("/search", "SearchAnswer"), ("/captions", "CaptionsAnswer")):
        content = paths[route]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert content == {"$ref": f"#/components/schemas/{answer}"}
    ids = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.fixture(scope="module")
def small(service) -> Iterator[Server]:
    """A server that asks for a key and reads bodies of 1 MiB."""
    server = Server(make_app(service, api_key="sesame", limits=Limits(body_bytes=1 << 20)))
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/rerank", {"X-API-Key": "sesame"}, 413),
        ("/rerank", {}, 401),
        ("/nowhere", {"X-API-Key": "sesame"}, 413),
        ("/rerank", {"X-API-Key": "sesame", "Transfer-Encoding": "chunked"}, 413),
    ],
)
def test_who_sends_all_before_reading_hears_why_it_was_refused(small, path, headers, status):
    """As http.client does: a connection closed meanwhile would be an error of the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=60)
    pieces = (b" " * (1 << 16) for _ in range(24 << 4))
    body = pieces if "Transfer-Encoding" in headers else b" " * (24 << 20)
    connection.request("POST", path, body, headers, encode_chunked="Transfer-Encoding" in headers)
    answer = connection.getresponse()
    assert answer.status == status
    told = json.loads(answer.read())["detail"]
    assert (
        status == 401 or told == "the body has more than 1048576 bytes (edje serve --max-body-mib)"
    )
    connection.close()


def test_who_asks_first_whether_to_send_is_told_no_at_once(small):
    connection = http.client.HTTPConnection("127.0.0.1", small.port, timeout=60)
    connection.putrequest("POST", "/rerank")
    for name, value in (
        ("X-API-Key", "sesame"),
        ("Content-Length", str(24 << 20)),
        ("Expect", "100-continue"),
    ):
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()
