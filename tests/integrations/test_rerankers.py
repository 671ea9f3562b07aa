"""Images through the library `rerankers`."""

import base64
from pathlib import Path

import pytest

pytest.importorskip("rerankers", reason="pip install 'edje-jax[rerankers]'")
from rerankers import Document, Reranker

from edje_jax.data.images import BadImage
from edje_jax.integrations.rerankers import EdjeRanker


@pytest.fixture(scope="module")
def ranker() -> EdjeRanker:
    """Made as the library documents it."""
    ranker = Reranker("shapes-demo", model_type="EdjeRanker", verbose=0)
    assert isinstance(ranker, EdjeRanker)
    return ranker


def check(results, expected) -> None:
    """Results in the model's order, with its scores."""
    assert [one.rank for one in results] == [1, 2, 3, 4]
    assert [one.text for one in results] == [path for path, _ in expected]
    for one, (_, score) in zip(results, expected, strict=True):
        assert one.score == pytest.approx(score, abs=1e-5)
        assert (one.match_logit > 0) == (one.rank == 1)


def test_paths_are_ranked(ranker, photos, query, expected, free_loop):
    found = ranker.rank(query, photos)
    check(found, expected)
    assert found.top_k(1)[0].doc_id == 3 and found.query == query
    assert ranker.score(query, photos[3]) == pytest.approx(found.get_score_by_docid(3), abs=1e-5)
    named = ranker.rank(query, photos, ["a", "b", "c", "d"], [{"n": i} for i in range(4)])
    assert (named[0].doc_id, named[0].n) == ("d", 3)
    check(free_loop(lambda: ranker.rank_async(query, photos)), expected)


def test_documents_are_ranked_and_stay_as_they_are(ranker, photos, query):
    data = base64.b64encode(Path(photos[3]).read_bytes()).decode()
    docs = [
        Document(document_type="image", image_path=photos[0], doc_id="path"),
        Document(document_type="image", base64=data, doc_id="base64", metadata={"year": 2024}),
    ]
    found = ranker.rank(query, docs)
    assert [one.doc_id for one in found] == ["base64", "path"] and found[0].year == 2024
    assert docs[1].metadata == {"year": 2024}
    assert ranker.rank(query, docs[0])[0].doc_id == "path"


def test_documents_may_be_ids_of_an_index(index_path, query):
    ranker = EdjeRanker("shapes-demo", index=index_path)
    assert ranker.rank(query, ["36.png", "37.png"])[0].text == "37.png"
    docs = [Document("a caption", doc_id="36.png"), Document("another", doc_id="37.png")]
    assert ranker.rank(query, docs)[0].text == "another"


def test_documents_without_an_image(photos, query):
    ranker = EdjeRanker("shapes-demo", without_image="last")
    found = ranker.rank(query, [Document("a caption"), photos[3]])
    assert [(one.doc_id, one.rank, one.score is None) for one in found] == [
        (1, 1, False),
        (0, 2, True),
    ]
    with pytest.raises(BadImage, match="the document: no image"):
        ranker.score(query, Document("a caption"))
    with pytest.raises(BadImage, match=r"docs\[0\]: no image"):
        EdjeRanker("shapes-demo").rank(query, [Document("a caption")])
