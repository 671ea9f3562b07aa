"""Image nodes in LlamaIndex's own retriever and query engine."""

import base64
from pathlib import Path

import pytest

pytest.importorskip("llama_index.core", reason="pip install 'edje-jax[llamaindex]'")
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import (
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    MetadataMode,
    NodeWithScore,
    TextNode,
)

from edje_jax.data.images import BadImage
from edje_jax.integrations.llamaindex import EdjePostprocessor


class QueryEmbedding(BaseEmbedding):
    """First-stage embeddings of queries; nodes bring theirs along."""

    reranker: object

    def _get_query_embedding(self, query):
        return self.reranker.embed_texts([query])[0].tolist()

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text):
        raise AssertionError("texts are not embedded")


@pytest.fixture(scope="module")
def index(shipped, photos) -> VectorStoreIndex:
    vectors = shipped.embed_images(photos).tolist()
    nodes = [
        ImageNode(text=Path(path).name, image_path=path, embedding=vector)
        for path, vector in zip(photos, vectors, strict=True)
    ]
    return VectorStoreIndex(nodes, embed_model=QueryEmbedding(reranker=shipped))


def check(nodes, expected) -> None:
    """Nodes in the model's order, with its scores."""
    assert [one.node.image_path for one in nodes] == [path for path, _ in expected]
    for one, (_, score) in zip(nodes, expected, strict=True):
        assert one.score == pytest.approx(score, abs=1e-5)
        assert (one.metadata["match_logit"] > 0) == (one is nodes[0])


def test_a_query_engine_with_reranking(shipped, index, query, expected, free_loop):
    rerank = EdjePostprocessor(reranker=shipped)
    found = index.as_retriever(similarity_top_k=4).retrieve(query)
    assert found[0].node.image_path != expected[0][0]  # Reranking changes the first
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=4, node_postprocessors=[rerank])
    answer = engine.query(query)
    check(answer.source_nodes, expected)
    assert "37.png" in str(answer) and "match_logit" not in str(answer)  # The prompt
    check(free_loop(lambda: rerank.apostprocess_nodes(found, query_str=query)), expected)
    assert "match_logit" not in found[0].metadata  # The given ones stay


def test_every_kind_of_node_has_its_image(shipped, photos, query):
    data = [Path(path).read_bytes() for path in photos]
    nodes = [
        ImageNode(image=base64.b64encode(data[3]).decode()),
        ImageDocument(image_path=photos[3]),
        ImageDocument(image=base64.b64encode(data[3])),
        Document(image_resource=MediaResource(data=data[3])),
        TextNode(text="a caption", metadata={"photo": photos[3]}),
    ]
    rerank = EdjePostprocessor(reranker=shipped, image_key="photo")
    given = [NodeWithScore(node=node) for node in nodes]
    out = rerank.postprocess_nodes(given, query_str=query)
    assert sorted(one.node.node_id for one in out) == sorted(node.node_id for node in nodes)
    # The same image at two places of a batch is rounded differently on some CPUs.
    assert [one.score for one in out] == pytest.approx([out[0].score] * len(nodes), abs=1e-5)
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert "match_logit" not in out[-1].node.get_content(mode)


def test_nodes_may_be_ids_of_an_index(shipped, photo_index, query):
    nodes = [TextNode(id_="36.png"), TextNode(metadata={"image_id": "37.png"})]
    rerank = EdjePostprocessor(reranker=shipped, index=photo_index, top_n=1)
    (first,) = rerank.postprocess_nodes([NodeWithScore(node=one) for one in nodes], query_str=query)
    assert first.node.node_id == nodes[1].node_id
    assert (
        "reranker" not in rerank.to_dict() and rerank.to_dict()["class_name"] == "EdjePostprocessor"
    )


def test_nodes_without_an_image(shipped, photos, query):
    url = "https://example.org/a.png"
    nodes = [
        NodeWithScore(node=TextNode(id_="words", text="a caption"), score=0.9),
        NodeWithScore(node=ImageNode(id_="far", image_url=url)),
        NodeWithScore(node=ImageNode(image_path=photos[3]), score=0.1),
    ]
    with pytest.raises(BadImage, match=r"nodes\[0\] \(words\): no image; nodes\[1\] \(far\): htt"):
        EdjePostprocessor(reranker=shipped).postprocess_nodes(nodes, query_str=query)
    last = EdjePostprocessor(reranker=shipped, without_image="last")
    first, *behind = last.postprocess_nodes(nodes, query_str=query)
    assert first.node.image_path == photos[3]
    assert [(one.node_id, one.score) for one in behind] == [("words", None), ("far", None)]
    with pytest.raises(ValueError, match="no query to rank nodes by"):
        last.postprocess_nodes(nodes)
