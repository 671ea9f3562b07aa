"""Reranking of image documents in LangChain: a `BaseDocumentCompressor`.

    from langchain_classic.retrievers import ContextualCompressionRetriever
    from edje_jax import Reranker
    from edje_jax.integrations.langchain import EdjeCompressor

    compressor = EdjeCompressor(reranker=Reranker.from_pretrained("shapes-demo"), top_n=5)
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=your_retriever
    )
    retriever.invoke("a red star left of a blue circle")

Needs `pip install "edje-jax[langchain]"`. LangChain runs `acompress_documents` in a thread.
"""

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from edje_jax.index.image_index import ImageIndex
from edje_jax.integrations.candidates import Candidate, CandidateRanker, WithoutImage
from edje_jax.search.reranker import Reranker


class EdjeCompressor(BaseDocumentCompressor):
    """Documents by falling score of their images, the best `top_n`.

    The image of a document is in its metadata, or in an index: a path, the bytes of a file, a PIL
    image, base64 or a data: URI. Documents come back as copies, whose metadata have
    "relevance_score", from 0 to 1 (a probability once the model is calibrated), and "match_logit".
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    reranker: Reranker
    top_n: int | None = Field(default=None, ge=1)
    """Number of documents to return; None returns all."""
    image_key: str = "image"
    """Name of the image in a document's metadata."""
    index: ImageIndex | None = None
    """Index whose stored tokens are taken for images that are in it."""
    id_key: str = "image_id"
    """Name in a document's metadata of the image's id in the index; the document's own id counts
    where there is none."""
    without_image: WithoutImage = "error"
    """Treatment of documents without an image that can be read: an "error", "last" or "drop"."""

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Rank documents.

        Raises:
            BadImage: images are missing or cannot be read, and `without_image` is "error".
            BadStore: the index was built with another model.
        """
        ranker = CandidateRanker(self.reranker, self.index, self.without_image)
        candidates = [
            Candidate(
                f"documents[{i}] (image in metadata[{self.image_key!r}])",
                document.metadata.get(self.image_key),
                document.metadata.get(self.id_key, document.id),
            )
            for i, document in enumerate(documents)
        ]
        out = []
        for place, score, logit in ranker.rank(query, candidates, self.top_n):
            document = documents[place]
            scores = {"relevance_score": score, "match_logit": logit} if score is not None else {}
            out.append(document.model_copy(update={"metadata": document.metadata | scores}))
        return out
