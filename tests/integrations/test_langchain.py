"""Image documents in LangChain's own retrievers."""

import pytest

pytest.importorskip("langchain_core", reason="pip install 'edje-jax[langchain]'")
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError

from edje_jax.data.images import BadImage
from edje_jax.integrations.langchain import EdjeCompressor


class ImageEmbeddings(Embeddings):
    """First-stage embeddings; the text of a document is its image's path."""

    def __init__(self, reranker):
        self.reranker = reranker

    def embed_documents(self, texts):
        return self.reranker.embed_images(texts).tolist()

    def embed_query(self, text):
        return self.reranker.embed_texts([text])[0].tolist()


@pytest.fixture(scope="module")
def store(shipped, photos) -> InMemoryVectorStore:
    store = InMemoryVectorStore(ImageEmbeddings(shipped))
    store.add_documents([Document(path, metadata={"image": path}) for path in photos])
    return store


def check(documents, expected) -> None:
    """Documents in the model's order, with its scores."""
    assert [one.page_content for one in documents] == [path for path, _ in expected]
    for document, (_, score) in zip(documents, expected, strict=True):
        assert document.metadata["relevance_score"] == pytest.approx(score, abs=1e-5)
        assert (document.metadata["match_logit"] > 0) == (document is documents[0])


def test_a_retriever_with_reranking(shipped, store, query, expected, free_loop):
    classic = pytest.importorskip("langchain_classic.retrievers", reason="langchain-classic")
    base = store.as_retriever(search_kwargs={"k": 4})
    assert base.invoke(query)[0].page_content != expected[0][0]  # Reranking changes the first
    retriever = classic.ContextualCompressionRetriever(
        base_compressor=EdjeCompressor(reranker=shipped), base_retriever=base
    )
    check(retriever.invoke(query), expected)
    check(free_loop(lambda: retriever.ainvoke(query)), expected)
    assert "relevance_score" not in base.invoke(query)[0].metadata  # The given ones stay


def test_documents_may_be_ids_of_an_index(shipped, photo_index, query):
    documents = [Document("a", id="36.png"), Document("b", metadata={"image_id": "37.png"})]
    compressor = EdjeCompressor(reranker=shipped, index=photo_index, top_n=1)
    assert [one.page_content for one in compressor.compress_documents(documents, query)] == ["b"]


def test_documents_without_an_image(shipped, photos, query):
    documents = [Document("a caption"), Document("b", metadata={"file": photos[3]})]
    with pytest.raises(BadImage, match=r"documents\[0\] \(image in metadata\['file'\]\): no image"):
        EdjeCompressor(reranker=shipped, image_key="file").compress_documents(documents, query)
    last = EdjeCompressor(reranker=shipped, image_key="file", without_image="last")
    first, behind = last.compress_documents(documents, query)
    assert first.page_content == "b" and behind == documents[0]


def test_settings_are_checked(shipped):
    for wrong in ({"top_n": 0}, {"without_image": "skip"}, {"topn": 1}):
        with pytest.raises(ValidationError):
            EdjeCompressor(reranker=shipped, **wrong)
