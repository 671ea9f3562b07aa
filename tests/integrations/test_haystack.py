"""Image documents in Haystack's own pipelines."""

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("haystack", reason="pip install 'edje-jax[haystack]'")
from haystack import Document, Pipeline, component
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ByteStream
from haystack.document_stores.in_memory import InMemoryDocumentStore

from edje_jax.data.images import BadImage
from edje_jax.integrations.haystack import EdjeImageRanker


@component
class QueryEmbedder:
    """First-stage embeddings of queries."""

    def __init__(self, reranker):
        self.reranker = reranker

    @component.output_types(embedding=list[float])
    def run(self, text: str):
        return {"embedding": self.reranker.embed_texts([text])[0].tolist()}


@pytest.fixture(scope="module")
def pipeline(shipped, photos) -> Pipeline:
    """Query -> the nearest images by embedding -> reranked."""
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    vectors = shipped.embed_images(photos).tolist()
    store.write_documents(
        [
            Document(meta={"file_path": path}, embedding=vector)
            for path, vector in zip(photos, vectors, strict=True)
        ]
    )
    pipeline = Pipeline()
    pipeline.add_component("embedder", QueryEmbedder(shipped))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=4))
    pipeline.add_component("ranker", EdjeImageRanker("shapes-demo"))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def check(documents, expected) -> None:
    """Documents in the model's order, with its scores."""
    assert [one.meta["file_path"] for one in documents] == [path for path, _ in expected]
    for document, (_, score) in zip(documents, expected, strict=True):
        assert document.score == pytest.approx(score, abs=1e-5)
        assert (document.meta["match_logit"] > 0) == (document is documents[0])


def test_a_pipeline_with_reranking(pipeline, query, expected, free_loop):
    asked = {"embedder": {"text": query}, "ranker": {"query": query}}
    found = pipeline.run(asked, include_outputs_from={"retriever"})
    assert found["retriever"]["documents"][0].meta["file_path"] != expected[0][0]
    check(found["ranker"]["documents"], expected)
    asked["ranker"]["top_k"] = 2
    check(pipeline.run(asked)["ranker"]["documents"], expected[:2])
    ranker, documents = pipeline.get_component("ranker"), found["retriever"]["documents"]
    check(free_loop(lambda: ranker.run_async(query, documents))["documents"], expected)
    assert documents[0].meta.keys() == {"file_path"}  # The given ones stay


def test_a_pipeline_is_written_and_read(index_path, photos, query):
    settings = {
        "top_k": 1, "root_path": str(Path(photos[0]).parent), "without_image": "drop",
        "index": index_path, "file_path_meta_field": "photo", "id_meta_field": "name",
    }  # fmt: skip
    pipeline = Pipeline()
    pipeline.add_component("ranker", EdjeImageRanker("shapes-demo", **settings))
    # Haystack opens no module that it is not told to trust.
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=[EdjeImageRanker.__module__])
    ranker = again.get_component("ranker")
    assert ranker.to_dict() == pipeline.get_component("ranker").to_dict()
    assert {name: getattr(ranker, name) for name in settings} == settings
    documents = [
        Document(meta={"photo": "34.png"}),
        Document(meta={"name": "37.png"}),
        Document(id="36.png"),
        Document(meta={"photo": "../elsewhere.png"}),
    ]
    out = asyncio.run(again.run_async({"ranker": {"query": query, "documents": documents}}))
    assert [one.id for one in out["ranker"]["documents"]] == [documents[1].id]


def test_documents_with_and_without_an_image(photos, query):
    blob = ByteStream(Path(photos[3]).read_bytes(), mime_type="image/png")
    documents = [
        Document(id="words", content="a caption", score=0.9),
        Document(id="outside", meta={"file_path": "../../etc/passwd"}),
        Document(id="blob", blob=blob),
        Document(id="file", meta={"file_path": "34.png"}),
    ]
    ranker = EdjeImageRanker("shapes-demo", root_path=str(Path(photos[0]).parent))
    with pytest.raises(BadImage, match=r"documents\[0\] \(words\): no image; documents\[1\]"):
        ranker.run(query, documents)
    ranker = EdjeImageRanker("shapes-demo", root_path=ranker.root_path, without_image="last")
    out = ranker.run(query, documents)["documents"]
    assert [one.id for one in out] == ["blob", "file", "words", "outside"]
    assert [one.score is None for one in out] == [False, False, True, True]
    assert out[0].blob == blob
