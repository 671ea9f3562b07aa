"""A reranker as a search model of `mteb`: two stages, and each picture encoded once.

    import mteb
    from edje_jax import Reranker
    from edje_jax.retrieval.mteb_search import MtebSearch

    model = MtebSearch(Reranker.from_pretrained("runs/coco"), k=10)
    mteb.evaluate(model, mteb.get_tasks(["Flickr30kT2IRetrieval"]))

Implements mteb's `SearchProtocol` (mteb 2.26). mteb's own wrapper of a cross-encoder would hand
every picture over again with every query.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from edje_jax.data.images import load_image, resize
from edje_jax.evaluation.retrieval import top_k
from edje_jax.evaluation.trec import falling
from edje_jax.inference.engine import Encoded
from edje_jax.retrieval.reranker import Reranker

CHUNK = 256
"""Pictures decoded at once."""


class MtebSearch:
    """Text-to-image and image-to-text tasks; the corpus or the queries have a column "image".

    The k nearest by cosine are reordered by match logit + similarity_weight * cosine, as `eval.py`
    does; what mteb wants beyond k follows in the order of the cosine. Where a task brings its own
    candidates (reranking tasks), all of those are scored. Scores fall strictly, so that mteb cannot
    break ties in an order of its own; past k they are not logits.
    """

    def __init__(self, reranker: Reranker, k: int = 10, similarity_weight: float = 0.0):
        self.reranker, self.k, self.similarity_weight = reranker, k, similarity_weight
        self._corpus: _Side | None = None

    def index(self, corpus: Any, **_: Any) -> None:
        """Encode the corpus, a dataset with "id" and "image" or "text" (and "title")."""
        self._corpus = self._read(corpus)

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {corpus id: score}}, the best `top_k` of each.

        Raises:
            ValueError: nothing was indexed, or not one side alone is pictures.
        """
        if self._corpus is None:
            raise ValueError("index a corpus first, as mteb does")
        asked, corpus = self._read(queries), self._corpus
        if (asked.texts is None) == (corpus.texts is None):
            raise ValueError(
                "an EDJE scores texts against pictures: one of queries and corpus must be pictures"
            )
        near = asked.embeddings @ corpus.embeddings.T
        if top_ranked is None:
            rows = _nearest(near, top_k)
            depth = min(self.k, rows.shape[1])
            return self._reranked(asked, corpus, near, list(rows), depth, top_k)
        place = {name: i for i, name in enumerate(corpus.ids)}
        given = [np.array([place[x] for x in top_ranked.get(q, ())], int) for q in asked.ids]
        # By cosine, so that level scores keep the first stage's order.
        given = [rows[np.argsort(-near[q, rows], kind="stable")] for q, rows in enumerate(given)]
        return self._reranked(asked, corpus, near, given, len(corpus.ids), top_k)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb files results under."""
        from mteb.models.model_meta import ModelMeta

        config, count = self.reranker.config, self.reranker.num_parameters
        return ModelMeta(
            loader=None,
            name=f"edje_jax/{self.reranker.fingerprint}",
            revision=f"k{self.k}-w{self.similarity_weight:g}",
            release_date=None,
            languages=None,
            n_parameters=sum(count.values()),
            memory_usage_mb=None,
            max_tokens=config.max_text_length,
            embed_dim=config.backbone.text.projection_size,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=[],
            similarity_fn_name=None,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
            model_type=["cross-encoder"],
        )

    def _read(self, rows: Any) -> "_Side":
        ids = [str(name) for name in rows["id"]]
        if "image" not in rows.column_names:
            texts = [_text(row) for row in rows]
            return _Side(ids, self.reranker.embed_texts(texts), texts=texts)
        parts: list[Encoded] = []
        for start in range(0, len(rows), CHUNK):
            images = rows[start : start + CHUNK]["image"]
            recipe = self.reranker.config.image
            pixels = np.stack([resize(load_image(image), recipe) for image in images])
            parts.append(self.reranker.engine.encode_images(pixels))
        tokens = np.concatenate([part.tokens for part in parts])
        return _Side(ids, np.concatenate([part.embeddings for part in parts]), tokens=tokens)

    def _reranked(
        self,
        asked: "_Side",
        corpus: "_Side",
        near: Float[np.ndarray, "q g"],
        rows: list[Int[np.ndarray, " n"]],
        depth: int,
        top_k: int,
    ) -> dict[str, dict[str, float]]:
        """The first `depth` of each query's rows by score, then the others as they stand."""
        heads = [row[:depth] for row in rows]
        query = np.repeat(np.arange(len(heads)), [len(head) for head in heads])
        item = np.concatenate(heads)
        texts, pictures = (corpus, asked) if asked.texts is None else (asked, corpus)
        pairs = (item, query) if asked.texts is None else (query, item)
        engine = self.reranker.engine
        assert texts.texts is not None
        logits = engine.score_pairs(engine.joint_tokenizer(texts.texts), pictures.tokens, *pairs)
        scores = logits + np.float32(self.similarity_weight) * near[query, item]
        ends = np.cumsum([len(head) for head in heads])[:-1]
        out = {}
        for q, (row, head) in enumerate(zip(rows, np.split(scores, ends), strict=True)):
            order = np.argsort(-head, kind="stable")
            ranked = np.concatenate([row[: len(head)][order], row[len(head) :]])[:top_k]
            # What was not scored stands below whatever was, by its cosine.
            rest = near[q, row[len(head) :]] - 2 + head.min(initial=0.0)
            values = falling(np.concatenate([head[order], rest])[None, :top_k])[0]
            names = [corpus.ids[i] for i in ranked.tolist()]
            out[asked.ids[q]] = dict(zip(names, values.tolist(), strict=True))
        return out


class _Side:
    """Queries or corpus: embeddings, and texts or the tokens of pictures."""

    def __init__(
        self,
        ids: list[str],
        embeddings: Float[np.ndarray, "n e"],
        texts: list[str] | None = None,
        tokens: Any = None,
    ):
        self.ids, self.embeddings, self.texts, self.tokens = ids, embeddings, texts, tokens


def _nearest(near: Float[np.ndarray, "q g"], count: int) -> Int[np.ndarray, "q k"]:
    return top_k(near, min(count, near.shape[1]))


def _text(row: Mapping[str, Any]) -> str:
    return f"{row.get('title') or ''} {row['text']}".strip()
