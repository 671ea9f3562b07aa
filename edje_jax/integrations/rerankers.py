"""Image reranker for the library `rerankers` of Answer.AI.

    from rerankers import Reranker
    import edje_jax.integrations.rerankers  # Makes the model type known

    ranker = Reranker("shapes-demo", model_type="EdjeRanker")
    ranker.rank("a red star left of a blue circle", ["1.png", "2.png"]).top_k(1)

Needs `pip install "edje-jax[rerankers]"`. The library runs `rank_async` in a thread.
"""

import os
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from rerankers.documents import Document
from rerankers.models import AVAILABLE_RANKERS
from rerankers.models.ranker import BaseRanker
from rerankers.results import RankedResults, Result

from edje_jax.index.image_index import ImageIndex
from edje_jax.integrations.candidates import Candidate, CandidateRanker, WithoutImage
from edje_jax.search.reranker import Reranker


class EdjeRanker(BaseRanker):
    """Documents by falling score of their images.

    A document is a path, base64, a data: URI, an id of the index, or a `Document` with a
    `base64` or an `image_path`, whose `doc_id` may be an id of the index. Scores are from 0 to 1,
    probabilities once the model is calibrated; the metadata of each document gain "match_logit". A
    document without an image has a rank and no score.

    Args:
        model_name_or_path: a model folder, a training workdir, a hub id, or the shipped
            "shapes-demo".
        verbose: no more is said than the library itself says.
        index: folder or URL of an index whose stored tokens are taken for images that are in it.
        without_image: treatment of documents without an image that can be read: an "error", "last"
            or "drop".
    """

    def __init__(
        self,
        model_name_or_path: str,
        verbose: int = 1,
        index: str | os.PathLike[str] | None = None,
        without_image: WithoutImage = "error",
    ):
        self.verbose = verbose
        opened = None if index is None else ImageIndex.open(index)
        model = Reranker.from_pretrained(model_name_or_path)
        self._ranker = CandidateRanker(model, opened, without_image)

    def score(self, query: str, doc: str | Document) -> float:
        """Score of one document.

        Raises:
            BadImage: it has no image that can be read.
        """
        ranker = replace(self._ranker, without_image="error")
        return ranker.rank(query, [_candidate("the document", doc)])[0].score or 0.0

    def rank(
        self,
        query: str,
        docs: str | Document | Sequence[str | Document],
        doc_ids: Sequence[str] | Sequence[int] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> RankedResults:
        """Rank documents; `doc_ids` and `metadata`, one for each, go before their own.

        Raises:
            BadImage: images are missing or cannot be read, and `without_image` is "error".
        """
        given = [docs] if isinstance(docs, str | Document) else docs
        candidates = [_candidate(f"docs[{i}]", doc) for i, doc in enumerate(given)]
        results = []
        for rank, (place, score, logit) in enumerate(self._ranker.rank(query, candidates), 1):
            document = _as_document(given[place])
            if doc_ids is not None:
                document.doc_id = doc_ids[place]
            elif document.doc_id is None:
                document.doc_id = place
            own = document.metadata if metadata is None else metadata[place]
            document.metadata = own if logit is None else own | {"match_logit": logit}
            results.append(Result(document, score, rank))
        return RankedResults(results, query, has_scores=True)


def _candidate(name: str, doc: str | Document) -> Candidate:
    if isinstance(doc, str):
        return Candidate(name, doc, doc)
    id = doc.doc_id if isinstance(doc.doc_id, str) else None
    return Candidate(name, doc.base64 or doc.image_path, id)


def _as_document(doc: str | Document) -> Document:
    """Copy of a document; a string becomes one with the string as its text."""
    if isinstance(doc, str):
        return Document(text=doc, document_type="image")
    return copy(doc)


AVAILABLE_RANKERS["EdjeRanker"] = EdjeRanker
