"""The HTTP of `edje serve`: right answers, and clear ones to wrong questions.

Covers serving/batcher.py, serving/jobs.py, serving/limits.py, serving/monitor.py,
serving/routes/images.py, serving/routes/rerank.py, serving/routes/search.py, serving/service.py
and serving/state.py.
"""

import asyncio
import base64
import copy
import io
import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from edje_jax.config.calibration import Calibration
from edje_jax.first_stage.base import BeyondLimits
from edje_jax.first_stage.milvus import StaleCollection
from edje_jax.index.where import Where
from edje_jax.serving.app import make_app
from edje_jax.serving.limits import Limits
from edje_jax.serving.service import Service

QUERY = "a red circle left of a blue square"


@pytest.fixture(scope="module")
def client(service):
    with TestClient(make_app(service)) as client:
        yield client


def data_of(path: str | Path) -> str:
    return base64.b64encode(Path(path).read_bytes()).decode()


def paths(service: Service) -> list[str]:
    return [service.index.store.row(i).path for i in range(len(service.index))]


def test_search_is_the_rerankers(client, service):
    answer = client.post("/search", json={"query": QUERY, "k": 9, "top_k": 4}).json()
    expected = service.reranker.search(service.index, [QUERY], k=9, top_k=4)[0]
    assert [result["id"] for result in answer["results"]] == [one["id"] for one in expected]
    for result, one in zip(answer["results"], expected, strict=True):
        assert result["score"] == pytest.approx(one["score"], abs=1e-5)
        assert result["base_rank"] == one["base_rank"] and len(result["captions"]) == 2
    assert answer["k"] == 9 and set(answer["seconds"]) == {
        "first_stage", "by_projection", "by_embedding", "gather", "rerank", "moments", "total"
    }  # fmt: skip
    # The base order's ranks are the reranked places of the same images.
    everything = client.post("/search", json={"query": QUERY, "k": 9, "top_k": 9}).json()
    places = {result["id"]: i + 1 for i, result in enumerate(everything["results"])}
    assert {one["id"]: one["rank"] for one in everything["base"]} == places
    similarities = [one["similarity"] for one in everything["base"]]
    assert similarities == sorted(similarities, reverse=True)


def test_captions_of_an_image(client, service):
    name = service.index.store.row(3).id
    answer = client.post("/captions", json={"id": name, "k": 10, "top_k": 3}).json()
    image = service.index.store.row(3).path
    expected = service.reranker.search_captions(service.index, [image], k=10, top_k=3)[0]
    # Through the index its tokens are bfloat16: nearly the same scores.
    got = {one["caption"]: one["score"] for one in answer["results"]}
    for one in expected:
        if one["caption"] in got:
            assert got[one["caption"]] == pytest.approx(one["score"], abs=2e-2)
    assert len(got) == 3
    assert client.post("/captions", json={"id": "nothing"}).status_code == 404


@pytest.mark.parametrize("route", ["/v1/rerank", "/v2/rerank"])
def test_rerank_takes_images_in_every_form(client, service, route):
    row, path = service.index.store.row(2), paths(service)[7]
    uri = f"data:image/png;base64,{data_of(path)}"
    documents = [
        {"id": row.id},
        {"image": data_of(path)},
        {"image": uri},
        {"content": [{"type": "image_url", "image_url": {"url": uri}}]},
    ]
    asked = {"model": "edje", "query": QUERY, "documents": documents, "unknown": 1}
    answer = client.post(route, json=asked).json()
    logits = service.reranker.score_matrix(
        [QUERY], service.reranker.encode_images([row.path, path])
    )[0]
    expected = 1 / (1 + np.exp(-logits))
    scores = {one["index"]: one["relevance_score"] for one in answer["results"]}
    assert scores[0] == pytest.approx(expected[0], abs=1e-2)
    for same in (1, 2, 3):
        assert scores[same] == pytest.approx(expected[1], abs=1e-5)
    ordered = [one["relevance_score"] for one in answer["results"]]
    assert ordered == sorted(ordered, reverse=True)
    assert answer["usage"]["pairs"] == 4 and answer["id"] and answer["model"]
    assert "document" not in answer["results"][0] and "warnings" not in answer["meta"]

    more = {"top_n": 2, "return_documents": True, "raw_scores": True}
    answer = client.post(route, json=asked | more).json()
    assert len(answer["results"]) == 2
    for one in answer["results"]:
        text = row.id if one["index"] == 0 else ""
        assert one["document"] == documents[one["index"]] | {"text": text}
        assert one["relevance_score"] == pytest.approx(logits[min(one["index"], 1)], abs=5e-2)


@pytest.mark.parametrize(
    "document, told",
    [
        ("a text", "this model ranks images"),
        ({"text": "a text"}, "this model ranks images"),
        ({"id": "../secret.png"}, "no image with the id"),
        ({"id": 3}, "no image with the id 3"),
        ({"image": "https://example.org/a.png"}, "addresses are not fetched"),
        ({"image": "file:///etc/passwd"}, "addresses are not fetched"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]},
            "not fetched",
        ),
        ({"content": [{"type": "text", "text": "x"}]}, "this model ranks images"),
        ({"content": []}, "takes one part of type"),
        ({"image": "data:image/png,abc"}, "has to read data:image"),
        ({"image": "!!"}, "not base64"),
        ({"image": base64.b64encode(b"no image").decode()}, "not an image"),
        ({"image": 7}, "expected"),
        ({}, "expected"),
        (None, "expected"),
        ([1], "expected"),
    ],
)
def test_what_is_no_image_is_named(client, document, told):
    asked = {"query": QUERY, "documents": [{"id": "0.png"}, document]}
    answer = client.post("/v1/rerank", json=asked)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("documents[1]: ") and told in answer.json()["detail"]


def test_an_image_bomb_is_refused(client):
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 1 << 20
    document = {"image": base64.b64encode(bomb.getvalue()).decode()}
    answer = client.post("/v1/rerank", json={"query": QUERY, "documents": [document]})
    assert answer.status_code == 422 and "pixels" in answer.json()["detail"]


def test_images_and_nothing_else_leave_the_index(client, service, indexed):
    odd = "odd & <name> #?%.png"
    answer = client.get("/images/odd%20%26%20%3Cname%3E%20%23%3F%25.png")
    assert answer.status_code == 200 and odd in service.index.store.image_of_id
    assert answer.content == (indexed.parent / odd).read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    small = client.get("/images/3.png", params={"thumbnail": 40})
    assert small.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(small.content)).size) == 40
    for name in (
        "secret.png",
        "../secret.png",
        "..%2fsecret.png",
        "%2fetc%2fpasswd",
        "set.json",
        "",
    ):
        assert client.get(f"/images/{name}").status_code == 404, name
    assert client.get("/images/3.png?thumbnail=99999").status_code == 422


@pytest.mark.parametrize("kind, media_type", [
    ("AVIF", "image/avif"), ("WEBP", "image/webp"), ("TIFF", "image/jpeg"), ("", "image/jpeg"),
])  # fmt: skip
def test_an_original_is_sent_as_what_its_content_is(kind, media_type, client, indexed):
    path = indexed.parent / "10.png"
    data = path.read_bytes()
    file = io.BytesIO(b"<script>")
    if kind:
        Image.new("RGB", (8, 8)).save(file, kind)
    path.write_bytes(file.getvalue())
    try:
        answer = client.get("/images/10.png")
        assert answer.status_code == 200 and answer.headers["content-type"] == media_type
        # Of what browsers do not show, the thumbnail that was made when the index was.
        is_original = answer.content == file.getvalue()
        assert is_original == (kind in ("AVIF", "WEBP"))
    finally:
        path.write_bytes(data)


def test_an_image_that_is_gone_still_has_its_thumbnail(client, service, indexed, tmp_path):
    path = indexed.parent / "11.png"
    data = path.read_bytes()
    path.unlink()
    try:
        answer = client.get("/images/11.png")
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
    finally:
        path.write_bytes(data)


def test_limits(service):
    limits = Limits(body_bytes=2000, documents=3, k=50, images=1, pixels=99)
    with TestClient(make_app(service, limits=limits)) as client:
        many = {"query": QUERY, "documents": [{"id": "0.png"}] * 4}
        told = client.post("/v1/rerank", json=many).json()["detail"]
        assert told == "documents: 4 is more than 3 (edje serve --max-documents)"
        told = client.post("/search", json={"query": QUERY, "k": 51}).json()["detail"]
        assert told == "k: 51 is more than 50 (edje serve --max-k)"
        sent = []
        for side in (9, 9, 10):
            small = io.BytesIO()
            Image.new("RGB", (side, side)).save(small, "PNG")
            sent.append({"image": base64.b64encode(small.getvalue()).decode()})
        for documents, told in (
            ([sent[0], {"id": "0.png"}], ""),
            ([sent[0], {"id": "0.png"}, sent[1]], "documents[2]: more than 1 images are sent"),
            ([sent[2]], "documents[0]: 10 x 10 are more than 99 pixels"),
        ):
            answer = client.post("/v1/rerank", json={"query": QUERY, "documents": documents})
            assert answer.status_code == (422 if told else 200)
            assert not told or answer.json()["detail"].startswith(told)
        long = json.dumps({"query": "x" * 3000})
        assert client.post("/search", content=long).status_code == 413
        pieces = (piece.encode() for piece in [long[:1500], long[1500:]])
        answer = client.post("/search", content=pieces)
        assert answer.status_code == 413 and "--max-body-mib" in answer.json()["detail"]


def test_an_api_key_guards_all_but_the_page(service):
    with TestClient(make_app(service, api_key="sesame")) as client:
        for path in ("/images/0.png", "/metrics", "/info", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.post("/search", json={"query": QUERY}).status_code == 401
        for path in ("/", "/healthz", "/health", "/ready"):
            assert client.get(path).status_code == 200
        assert client.options("/v1/rerank").status_code == 405
        both = {"X-API-Key": "sesame", "Authorization": "Bearer of-a-proxy"}
        for headers in ({"X-API-Key": "sesame"}, {"Authorization": "Bearer sesame"}, both):
            assert client.get("/info", headers=headers).status_code == 200
        for headers in ({"X-API-Key": "Sesame"}, {"Authorization": "Basic sesame"}):
            assert client.get("/info", headers=headers).status_code == 401


class Slow(Service):
    """Takes its time, and keeps what it was asked together."""

    def __init__(self, service: Service):
        super().__init__(service.reranker, service.index)
        self.gate = threading.Event()
        self.batches: list[int] = []

    def run(self, jobs):
        self.batches.append(len(jobs))
        self.gate.wait(20)
        return super().run(jobs)


def test_a_full_queue_says_when_to_come_again(service):
    slow = Slow(service)
    limits = Limits(waiting=4, batch=3)
    with TestClient(make_app(slow, limits=limits)) as client, ThreadPoolExecutor(12) as pool:

        def ask(i: int):
            return client.post("/search", json={"query": QUERY, "k": 3})

        first = pool.submit(ask, 0)
        while not slow.batches:
            time.sleep(0.01)
        rest = [pool.submit(ask, i) for i in range(1, 10)]
        while sum(one.done() for one in rest) < 5:
            time.sleep(0.01)
        refused = [one.result() for one in rest if one.done()]
        slow.gate.set()
        answers = [first.result(), *(one.result() for one in rest)]
    assert [one.status_code for one in refused] == [429] * 5
    assert {one.headers["retry-after"] for one in refused} == {"1"}
    codes = [one.status_code for one in answers]
    assert codes.count(200) == 5 and codes.count(429) == 5
    # What waited was computed together, up to the largest batch, and answered alike.
    assert slow.batches == [1, 3, 1]
    good = [one.json()["results"] for one in answers if one.status_code == 200]
    for one in good:
        assert [r["id"] for r in one] == [r["id"] for r in good[0]]


def test_a_request_that_takes_too_long_is_given_up(service):
    slow = Slow(service)
    with TestClient(make_app(slow, limits=Limits(seconds=0.2))) as client:
        answer = client.post("/search", json={"query": QUERY})
        assert answer.status_code == 503 and "0.2 seconds" in answer.json()["detail"]
        slow.gate.set()
        assert client.post("/search", json={"query": QUERY, "k": 3}).status_code == 200


def test_the_time_limit_is_of_the_whole_request(service):
    asked = {"query": QUERY, "documents": ["0.png"]}
    with TestClient(make_app(service)) as client:
        assert client.post("/rerank", json=asked).status_code == 200  # Compiled
    app = make_app(service, limits=Limits(seconds=3))
    with TestClient(app) as client:
        state = app.state.serving
        decode, submit = state.decode, state.batcher.submit

        async def read_slowly(*given):
            await asyncio.sleep(1.6)
            return await decode(*given)

        async def compute_slowly(job):
            await asyncio.sleep(1.6)
            return await submit(job)

        state.decode = read_slowly
        assert client.post("/rerank", json=asked).status_code == 200
        state.batcher.submit = compute_slowly
        assert client.post("/rerank", json=asked).status_code == 503


def test_a_decoding_that_is_given_up_keeps_its_place_until_it_ends(service):
    app, gate, running = make_app(service, limits=Limits(seconds=2)), threading.Event(), []
    with TestClient(app) as client, ThreadPoolExecutor(4) as pool:
        state = app.state.serving
        decode = state.decode

        def held(read, *given):
            running.append(None)
            gate.wait(20)
            return read(*given)

        state.decode = lambda *given: decode(held, *given)
        asked = {"query": QUERY, "documents": ["0.png"]}
        answers = pool.map(lambda _: client.post("/rerank", json=asked), range(4))
        assert [one.status_code for one in answers] == [503] * 4 and len(running) == 2
        gate.set()
        assert client.post("/rerank", json=asked).status_code == 200 and len(running) == 3


def test_a_time_limit_of_the_work_itself_is_no_timeout_of_the_request(service, monkeypatch):
    def give_up(*_):
        raise TimeoutError("of a replica")

    monkeypatch.setattr(Service, "_search", give_up)
    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        answer = client.post("/search", json={"query": QUERY})
        assert answer.status_code == 500 and "--timeout" not in answer.text


def test_a_filter_without_what_it_needs_is_told(service, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("metadata needs pyarrow")

    monkeypatch.setattr(Where, "check", missing)
    with TestClient(make_app(service)) as client:
        answer = client.post("/search", json={"query": QUERY, "where": "year > 2000"})
        assert answer.status_code == 503 and "needs pyarrow" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (BeyondLimits("k 20000: at most"), 422, "k 20000: at most"),
        (StaleCollection("/a/folder: open it"), 503, "start the server again"),
    ],
)
def test_what_the_first_stage_refuses_is_told(service, monkeypatch, error, code, told):
    def refuse(*_):
        raise error

    monkeypatch.setattr(Service, "_search", refuse)
    with TestClient(make_app(service)) as client:
        answer = client.post("/search", json={"query": QUERY})
        assert answer.status_code == code and told in answer.json()["detail"]
        assert "/a/folder" not in answer.text


def test_a_models_name_stays_when_its_folder_goes(service, tmp_path):
    moved = copy.copy(service.reranker)
    moved.source = str(tmp_path / "mine" / "model")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    served = Service(moved, service.index)
    (tmp_path / "mine" / "model").rmdir()
    assert served.name == "mine"


def test_a_failure_is_the_batchs_own(service, monkeypatch):
    app = make_app(service)
    with TestClient(app, raise_server_exceptions=False) as client:
        monkeypatch.setattr(Service, "_search", lambda *_: 1 / 0)
        answer = client.post("/search", json={"query": QUERY})
        assert answer.status_code == 500 and "log" in answer.json()["detail"]
        counted = 'edje_requests_total{route="/search",status="500"} 1.0'
        assert counted in client.get("/metrics").text
        monkeypatch.undo()
        assert client.post("/search", json={"query": QUERY, "k": 3}).status_code == 200


def test_only_what_was_understood_of_a_document_comes_back(client):
    odd = '{"query": "a", "return_documents": true, "documents": [{"id": "0.png", "x": "\\ud800"}]}'
    kind = {"content-type": "application/json"}
    answer = client.post("/v1/rerank", content=odd, headers=kind)
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["document"] == {"id": "0.png", "text": "0.png"}


def test_metrics_count(service):
    with TestClient(make_app(service)) as client:
        client.post("/search", json={"query": QUERY, "k": 5})
        client.get("/images/nothing")
        client.get("/no/such/page")
        told = client.get("/metrics").text
    assert 'edje_requests_total{route="/search",status="200"} 1.0' in told
    assert 'edje_requests_total{route="/images/{name:path}",status="404"} 1.0' in told
    assert 'edje_requests_total{route="other",status="404"} 1.0' in told
    assert "edje_pairs_total 5.0" in told and "edje_waiting 0.0" in told
    assert 'edje_search_seconds_count{part="rerank"} 1.0' in told


def test_a_thousand_malformed_bodies_break_nothing(client):
    rng = random.Random(0)
    good = json.dumps({"query": QUERY, "documents": [{"id": "0.png"}], "k": 3, "top_n": 1})
    scraps = [None, True, -1, 1e400, "", "\x00", "\ud800", [], {}, [[]], {"id": []}, 10**40]

    def mutated() -> bytes:
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(200))
        if kind == 1:
            data = bytearray(good.encode())
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            return bytes(data)
        if kind == 2:
            return good.encode()[: rng.randrange(len(good))]
        fields = json.loads(good) | {
            rng.choice(["query", "documents", "k", "top_k", "top_n", "id"]): rng.choice(scraps)
            for _ in range(3)
        }
        return json.dumps(fields).encode()

    codes = set()
    for i in range(1000):
        route = ("/search", "/v1/rerank", "/v2/rerank", "/captions")[i % 4]
        kind = "application/json" if i % 5 else "text/plain"
        answer = client.post(route, content=mutated(), headers={"content-type": kind})
        codes.add(answer.status_code)
        assert answer.status_code < 500, answer.text
    assert {200, 422} <= codes
    assert client.get("/healthz").json()["status"] == "ok"


def test_the_openapi_document_tells_every_answer(service):
    """Kinds of refusal and of content that are sent are kinds that are documented."""
    with TestClient(make_app(service, api_key="secret")) as client:
        key = {"X-API-Key": "secret"}
        paths = client.get("/openapi.json", headers=key).json()["paths"]
        refused = client.post("/search", json={"query": "", "k": 1}, headers=key)
        unknown = client.get("/images/none", headers=key)
        told = client.get("/metrics", headers=key)
        locked = client.get("/info")
    for status in (refused, unknown, locked):
        for methods in paths.values():
            for operation in methods.values():
                assert str(status.status_code) in operation["responses"]
    assert {"where", "what"} == set(refused.json()["detail"][0])
    assert (
        told.headers["content-type"].split(";")[0]
        in (paths["/metrics"]["get"]["responses"]["200"]["content"])
    )


# --- scores ---------------------------------------------------------------------------------------


def test_a_least_score_leaves_out_what_does_not_reach_it(client):
    asked = {"query": QUERY, "k": 9, "top_k": 9}
    everything = client.post("/search", json=asked).json()
    scores = [one["score"] for one in everything["results"]]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    least = (scores[3] + scores[4]) / 2
    some = client.post("/search", json={**asked, "min_score": least}).json()
    assert some["results"] == everything["results"][: sum(s >= least for s in scores)]
    none = client.post("/search", json={**asked, "min_score": 1.0}).json()
    assert none["results"] == [] and none["k"] == 9 and none["base"] == everything["base"]
    name = everything["base"][0]["id"]
    captions = client.post("/captions", json={"id": name, "k": 9, "min_score": 1.0}).json()
    assert captions["results"] == []


@pytest.mark.parametrize("least", [-0.1, 1.1, "high"])
def test_a_least_score_lies_from_zero_to_one(client, least):
    answer = client.post("/search", json={"query": QUERY, "min_score": least})
    assert answer.status_code == 422 and "min_score" in json.dumps(answer.json())


def test_a_calibrated_model_serves_calibrated_scores(service):
    reranker = copy.copy(service.reranker)
    reranker.calibration = Calibration(0.5, 2.0, -1.0, {"min_score": 0.4, "precision": 0.9})
    assert reranker.fingerprint == service.reranker.fingerprint
    with TestClient(make_app(Service(reranker, service.index))) as client:
        info = client.get("/info").json()
        assert info["calibrated"] and info["min_score"] == 0.4
        name = service.index.store.row(2).id
        asked = {"query": QUERY, "documents": [name]}
        score, logit = (
            client.post("/rerank", json={**asked, "raw_scores": raw}).json()["results"][0][
                "relevance_score"
            ]
            for raw in (False, True)
        )
        cosine = float(reranker.embed_texts([QUERY])[0] @ service.index.store.embeddings[[2]][0])
        assert score == pytest.approx(1 / (1 + np.exp(-((logit + cosine / 2) / 2 - 1))), abs=1e-5)
        found = client.post("/search", json={"query": QUERY, "k": 9, "top_k": 9}).json()["results"]
    expected = reranker.search(service.index, [QUERY], k=9, top_k=9)[0]
    assert [one["id"] for one in found] == [one["id"] for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
