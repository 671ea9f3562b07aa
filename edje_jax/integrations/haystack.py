"""Reranking of image documents in Haystack: a ranker component.

    from haystack import Document
    from edje_jax.integrations.haystack import EdjeImageRanker

    ranker = EdjeImageRanker("shapes-demo", top_k=5)
    documents = [Document(meta={"file_path": path}) for path in ("1.png", "2.png")]
    ranker.run(query="a red star left of a blue circle", documents=documents)["documents"]

Needs `pip install "edje-jax[haystack]"`. A pipeline that was written to YAML is read with
`Pipeline.loads(text, allowed_modules=["edje_jax.integrations.haystack"])`.
"""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from edje_jax.index.image_index import ImageIndex
from edje_jax.integrations.candidates import Candidate, CandidateRanker, WithoutImage
from edje_jax.search.reranker import Reranker


@component
class EdjeImageRanker:
    """Documents by falling score of their images, the best `top_k`.

    The image of a document is its `blob`, the file that its meta names as Haystack's image
    converters and embedders have it, or in an index. Documents come back as copies with a `score`
    from 0 to 1 (a probability once the model is calibrated) and "match_logit" in their meta. A
    document without an image has no score.

    Args:
        model: a model folder, a training workdir, a hub id, or the shipped "shapes-demo".
        top_k: number of documents to return.
        file_path_meta_field: name of the image's path in a document's meta.
        root_path: folder that paths are relative to; one that leads out of it is no image. Paths
            stay as they are where it is "".
        index: folder or URL of an index whose stored tokens are taken for images that are in it.
        id_meta_field: name in a document's meta of the image's id in the index; the document's own
            id counts where there is none.
        without_image: treatment of documents without an image that can be read: an "error", "last"
            or "drop".
    """

    def __init__(
        self,
        model: str,
        top_k: int = 10,
        file_path_meta_field: str = "file_path",
        root_path: str = "",
        index: str | None = None,
        id_meta_field: str = "image_id",
        without_image: WithoutImage = "error",
    ):
        self.model, self.top_k, self.index = model, top_k, index
        self.file_path_meta_field, self.root_path = file_path_meta_field, root_path
        self.id_meta_field = id_meta_field
        self.without_image: WithoutImage = without_image
        self._ranker: CandidateRanker | None = None

    def warm_up(self) -> None:
        """Load the model and open the index; `run` does so otherwise.

        Raises:
            FileNotFoundError, ValueError, BadWeights, WeightMismatch: see `load_model`.
            BadStore: the index is damaged, or was built with another model.
        """
        if self._ranker is None:
            index = None if self.index is None else ImageIndex.open(self.index)
            model = Reranker.from_pretrained(self.model)
            self._ranker = CandidateRanker(model, index, self.without_image)

    def to_dict(self) -> dict[str, Any]:
        """Settings as plain data."""
        return default_to_dict(
            self,
            model=self.model,
            top_k=self.top_k,
            file_path_meta_field=self.file_path_meta_field,
            root_path=self.root_path,
            index=self.index,
            id_meta_field=self.id_meta_field,
            without_image=self.without_image,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "EdjeImageRanker":
        """Component of the settings that `to_dict` gives."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rank documents; `top_k` goes before the component's.

        Raises:
            BadImage: images are missing or cannot be read, and `without_image` is "error".
        """
        self.warm_up()
        assert self._ranker is not None
        candidates = [
            Candidate(
                f"documents[{i}] ({document.id})",
                self._image(document),
                document.meta.get(self.id_meta_field, document.id),
            )
            for i, document in enumerate(documents)
        ]
        ranked = self._ranker.rank(query, candidates, self.top_k if top_k is None else top_k)
        return {"documents": [_scored(documents[place], *scores) for place, *scores in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run` in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)

    def _image(self, document: Document) -> Any:
        """Bytes or path of a document's image; None if there is none."""
        if document.blob is not None:
            return document.blob.data
        path = document.meta.get(self.file_path_meta_field)
        if not self.root_path or not isinstance(path, str | os.PathLike):
            return path  # What is no path is refused with its document's name
        full, root = Path(self.root_path, path).resolve(), Path(self.root_path).resolve()
        return full if full.is_relative_to(root) else None


def _scored(document: Document, score: float | None, logit: float | None) -> Document:
    meta = document.meta if logit is None else document.meta | {"match_logit": logit}
    return replace(document, score=score, meta=meta)
