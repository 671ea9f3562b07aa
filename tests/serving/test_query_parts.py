"""Queries of several parts over HTTP, in the forms that clients send."""

import base64
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient

from edje_jax import ImageIndex, Query
from edje_jax.search.composed import rank_composed, search_queries
from edje_jax.serving.app import make_app
from edje_jax.serving.limits import Limits
from edje_jax.serving.query_parts import QueryParts, parts_of_query
from edje_jax.serving.service import Service
from tests.colour_runtime import CODED, Colours
from tests.serving.small_parts import ColourModel, build_in_shards

IMAGES = Colours(40)


def data_of(number: int) -> str:
    """An image as base64."""
    out = io.BytesIO()
    IMAGES.image(number).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ImageIndex:
    return ImageIndex.open(build_in_shards(tmp_path_factory.mktemp("parts") / "index"))


@pytest.fixture(scope="module")
def client(index):
    with TestClient(make_app(Service(ColourModel(), index))) as client:
        yield client


URI = "data:image/png;base64," + data_of(7)
PART = {"type": "image_url", "image_url": {"url": URI}}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("red", {"text": "red"}),
        ({"text": "red", "not": "blue", "like": None}, {"text": "red", "not": ["blue"]}),
        ({"text": "red", "not": ["blue", "green"]}, {"text": "red", "not": ["blue", "green"]}),
        ({"text": "red", "not": ""}, {"text": "red", "not": []}),
        ({"content": "red"}, {"text": "red"}),
        ({"content": [{"type": "text", "text": "red"}, PART]}, {"text": "red", "image": URI}),
        ({"content": [PART], "not": "red"}, {"image": URI, "not": ["red"]}),
        ({"image": URI, "image_weight": 0.2}, {"image": URI, "image_weight": 0.2}),
        ({"image_url": {"url": URI}, "text": "red"}, {"text": "red", "image": URI}),
        ({"like": 391895}, {"like": "391895"}),
        ({"text": 2026, "like": "07"}, {"text": "2026", "like": "07"}),
        ({"text": "", "content": [{"type": "text", "text": "red"}]}, {"text": "red"}),
    ],
)
def test_parts_are_read_in_every_form(given, parts):
    read = QueryParts.model_validate(parts_of_query(given))
    assert read == QueryParts.model_validate(parts)


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ("", "body.query", 'a query needs a "text"'),
        ({}, "body.query", 'a query needs a "text"'),
        ({"not": ["blue"]}, "body.query", 'a query needs a "text"'),
        ({"text": "red", "not": ["blue"] * 9}, "body.query.not", "at most 8 items"),
        ({"text": "red", "not": 7}, "body.query.not", "list"),
        ({"text": "x" * 10_001}, "body.query.text", "at most 10000 characters"),
        ({"image": URI, "like": "07"}, "body.query", "give one"),
        ({"image": URI, "image_weight": 2}, "body.query.image_weight", "less than or equal to 1"),
        ({"content": [PART, PART]}, "body.query", "at most one image"),
        ({"content": [{"type": "audio"}], "text": "red"}, "body.query", "at most one image"),
        (7, "body.query", "dictionary"),
        ({"text": ["red"], "image": URI}, "body.query", 'the "text" of a query is a list; send'),
        ({"text": True, "like": "07"}, "body.query", 'the "text" of a query is a bool; send'),
        ({"content": 7, "like": "07"}, "body.query", "at most one image"),
    ],
)
def test_what_is_no_query_is_told_in_a_line(client, given, where, what):
    answers = [
        client.post("/search", json={"query": given}),
        client.post("/rerank", json={"query": given, "documents": ["00"]}),
    ]
    for answer in answers:
        (told,) = answer.json()["detail"]
        assert answer.status_code == 422 and told["where"] == where and what in told["what"]
        assert "\n" not in told["what"]


@pytest.mark.parametrize(
    ("given", "query"),
    [
        ({"text": "red", "not": "blue"}, Query("red", ["blue"])),
        ({"image": data_of(7)}, Query(image=IMAGES.image(7))),
        ({"like": "07"}, Query(like="07")),
        (
            {"text": "red", "not": ["blue"], "image": URI, "image_weight": 0.2},
            Query("red", ["blue"], image=IMAGES.image(7), image_weight=0.2),
        ),
    ],
)
def test_a_search_gives_what_python_gives(client, index, given, query):
    asked = {"query": given, "k": 12, "top_k": 12, "where": "id != '11'"}
    answer = client.post("/search", json=asked).json()
    ((found,), _) = search_queries(
        CODED, index, [query], 12, chosen=index.select(None, "id != '11'")
    )
    assert [one["id"] for one in answer["results"]] == [
        index.store.row(int(row)).id for row in found.rows
    ]
    assert answer["query"] == given.get("text", "") and answer["k"] == 12
    scores = [one["score"] for one in answer["results"]]
    np.testing.assert_allclose(scores, found.scores, atol=1e-6)


def test_indexed_and_sent_documents_are_ranked_together(client, index):
    query = {"text": "red", "not": ["blue"], "image": URI}
    documents = ["00", {"image": data_of(20)}, "05", {"image": data_of(30)}, "39"]
    asked = {"query": query, "documents": documents}
    answer = client.post("/v2/rerank", json=asked).json()
    encoded = CODED.encode_images(np.stack([IMAGES.image(i) for i in (0, 20, 5, 30, 39)]))
    plain = rank_composed(CODED, Query("red", ["blue"]), encoded, ColourModel().calibration)
    alone = client.post("/rerank", json={**asked, "query": {"text": "red", "not": ["blue"]}})
    order = np.argsort(-plain, kind="stable").tolist()
    assert [one["index"] for one in alone.json()["results"]] == order
    # Five images, each with two texts of one word and two tokens of its own.
    assert answer["usage"] == {"pairs": 10, "prompt_tokens": 30, "total_tokens": 30}
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] <= scores[0] <= 1
    raw = client.post("/rerank", json={**asked, "raw_scores": True}).json()["results"]
    logits = np.array([one["relevance_score"] for one in raw])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, atol=1e-6)
    # Images that are all indexed score the same, but for the rounding of stored tokens.
    ids = client.post("/rerank", json={**asked, "documents": ["00", "20", "05", "30", "39"]}).json()
    for ours, theirs in zip(answer["results"], ids["results"], strict=True):
        assert ours["index"] == theirs["index"]
        assert ours["relevance_score"] == pytest.approx(theirs["relevance_score"], abs=2e-3)
    assert (
        client.post("/rerank", json={**asked, "query": {"like": "05"}}).json()["results"][0][
            "index"
        ]
        == 2
    )


def test_an_image_that_cannot_be_used_is_told(index):
    limits = Limits(pixels=50)
    with TestClient(make_app(Service(ColourModel(), index), limits=limits)) as client:
        for given, status, told in (
            ({"like": "03"}, 404, "no such image"),
            ({"image": "https://example.org/a.png"}, 422, "query.image: addresses are not"),
            ({"image": base64.b64encode(b"no image").decode()}, 422, "query.image: "),
            ({"image": URI}, 422, "query.image: 8 x 8 are more than 50 pixels"),
        ):
            for path, more in (("/search", {}), ("/rerank", {"documents": ["00"]})):
                answer = client.post(path, json={"query": given, **more})
                assert answer.status_code == status and told in answer.json()["detail"]


def test_the_openapi_document_tells_the_parts(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("SearchRequest", "RerankRequest"):
        text, parts = schemas[name]["properties"]["query"]["anyOf"]
        assert text["minLength"] == 1
        given = {"not" if name == "negatives" else name for name in QueryParts.model_fields}
        assert parts["properties"].keys() == given | {"content"}


def test_a_part_of_an_unknown_name_is_refused_by_its_name(client):
    answer = client.post("/search", json={"query": {"text": "red", "negatives": ["blue"]}})
    assert answer.status_code == 422
    (error,) = answer.json()["detail"]
    assert error["what"].startswith('"negatives" is no part of a query; there are text, not')


def test_pairs_are_counted_for_every_text(index):
    with TestClient(make_app(Service(ColourModel(), index))) as client:
        asked = {"query": {"text": "red", "not": ["blue", "green"]}, "k": 5}
        assert client.post("/search", json=asked).status_code == 200
        told = client.get("/metrics").text
    assert "edje_pairs_total 15.0" in told
