"""Reranking of image nodes in LlamaIndex: a node postprocessor.

    from edje_jax import Reranker
    from edje_jax.integrations.llamaindex import EdjePostprocessor

    rerank = EdjePostprocessor(reranker=Reranker.from_pretrained("shapes-demo"), top_n=5)
    nodes = rerank.postprocess_nodes(your_retriever.retrieve(query), query_str=query)

Query engines take it among their `node_postprocessors`. Needs `pip install "edje-jax[llamaindex]"`.
LlamaIndex runs `apostprocess_nodes` in a thread.
"""

from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore, QueryBundle

from edje_jax.index.image_index import ImageIndex
from edje_jax.integrations.candidates import Candidate, CandidateRanker, WithoutImage
from edje_jax.search.reranker import Reranker

LOGIT = "match_logit"


class EdjePostprocessor(BaseNodePostprocessor):
    """Nodes by falling score of their images, the best `top_n`.

    The image is that of an `ImageNode`, `ImageDocument` or another `Node` with an image resource;
    for other nodes it is in the metadata: a path, the bytes of a file, a PIL image, base64 or a
    data: URI. Or it is in an index. Nodes come back as copies with a score from 0 to 1 (a
    probability once the model is calibrated) and, in metadata that neither language models nor
    embeddings see, "match_logit". A node without an image has no score.
    """

    reranker: Reranker = Field(exclude=True)
    top_n: int | None = Field(default=None, ge=1, description="Number of nodes; None is all.")
    image_key: str = Field(default="image", description="Name of the image in metadata.")
    index: ImageIndex | None = Field(default=None, exclude=True)
    id_key: str = Field(
        default="image_id",
        description="Name in metadata of an image's id in the index; a node's own id by default.",
    )
    without_image: WithoutImage = Field(
        default="error", description="Treatment of nodes without an image: error, last or drop."
    )

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises it."""
        return "EdjePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Rank nodes.

        Raises:
            ValueError: there is no query.
            BadImage: images are missing or cannot be read, and `without_image` is "error".
            BadStore: the index was built with another model.
        """
        if query_bundle is None:
            raise ValueError("no query to rank nodes by; give query_str or query_bundle")
        ranker = CandidateRanker(self.reranker, self.index, self.without_image)
        candidates = [
            Candidate(
                f"nodes[{i}] ({one.node_id})",
                self._image(one.node),
                one.metadata.get(self.id_key, one.node_id),
            )
            for i, one in enumerate(nodes)
        ]
        ranked = ranker.rank(query_bundle.query_str, candidates, self.top_n)
        return [
            NodeWithScore(node=_with_logit(nodes[place].node, logit), score=score)
            for place, score, logit in ranked
        ]

    def _image(self, node: BaseNode) -> Any:
        """Image of a node as it is kept: data, a path, an address or None."""
        own: tuple[Any, ...] = ()
        if isinstance(node, ImageNode):
            own = (node.image, node.image_path, node.image_url)
        elif isinstance(node, Node) and (resource := node.image_resource):
            data = resource.data.decode() if resource.data else None  # Base64
            own = (data, resource.path, str(resource.url) if resource.url else None)
        return next(filter(None, own), node.metadata.get(self.image_key))


def _with_logit(node: BaseNode, logit: float | None) -> BaseNode:
    """Copy of a node with the logit in metadata that are shown to no model."""
    if logit is None:
        return node
    hidden = {
        name: [*getattr(node, name), LOGIT]
        for name in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
    }
    return node.model_copy(update={"metadata": node.metadata | {LOGIT: logit}, **hidden})
