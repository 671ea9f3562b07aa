"""A reranker as a search model of `mteb`: two stages, and each image encoded once.

    import mteb
    from edje_jax import Reranker
    from edje_jax.integrations.mteb import MtebSearch

    model = MtebSearch(Reranker.from_pretrained("runs/coco"), k=10)
    mteb.evaluate(model, mteb.get_tasks(["Flickr30kT2IRetrieval"]))

Implements mteb's `SearchProtocol` (mteb 2.26). mteb's own wrapper of a cross-encoder would hand
every image over again with every query.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from edje_jax.config.model import ImageRecipe
from edje_jax.data.bad_records import are_too_many
from edje_jax.data.image_reader import cut_into, read_batches, stack_images
from edje_jax.data.images import BadImage, decode, image_pixels, resize
from edje_jax.evaluation.retrieval import top_k
from edje_jax.evaluation.scores import add_cosines
from edje_jax.evaluation.similarities import similarity_blocks
from edje_jax.evaluation.trec import strictly_decreasing
from edje_jax.runtimes.base import Encoded
from edje_jax.search.reranker import Reranker

log = logging.getLogger(__name__)


class MtebSearch:
    """Text-to-image and image-to-text tasks; the task's category tells which side is images.

    The k nearest by cosine are reordered as `eval.py` does, with the model's own similarity weight
    unless another is given; what mteb wants beyond k follows in the order of the cosine. Where a
    task brings its own candidates (reranking tasks), all of those are scored. Scores fall strictly,
    so that mteb cannot break ties in an order of its own; past k they are not logits.

    Up to a share `max_bad` of the queries, and of the corpus, may lack their text or image or have
    an image that cannot be read: each is named in the log. Such a document is never found, and such
    a query finds nothing.
    """

    def __init__(
        self,
        reranker: Reranker,
        k: int = 10,
        similarity_weight: float | None = None,
        max_bad: float = 0.01,
    ):
        own = reranker.calibration.similarity_weight
        self.reranker, self.k = reranker, k
        self.similarity_weight = own if similarity_weight is None else similarity_weight
        self.max_bad = max_bad
        self._corpus: _Side | None = None

    def index(self, corpus: Any, *, task_metadata: Any, **_: Any) -> None:
        """Encode the corpus, a dataset with "id" and "image" or "text" (and "title").

        Raises:
            ValueError: documents are not of texts alone or of images alone, or more than `max_bad`
                of them cannot be used.
        """
        self._corpus = self._read(corpus, task_metadata, "document")

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        top_k: int,
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """{query id: {corpus id: score}}, the best `top_k` of each.

        Raises:
            ValueError: nothing was indexed, not one side alone is images, more than `max_bad` of
                the queries cannot be used, or a logit is NaN.
        """
        if self._corpus is None:
            raise ValueError("index a corpus first, as mteb does")
        asked, corpus = self._read(queries, task_metadata, "query"), self._corpus
        if (asked.texts is None) == (corpus.texts is None):
            raise ValueError(
                "an EDJE scores texts against images: one of queries and corpus must be images"
            )
        if top_ranked is None:
            items, near = _nearest(asked, corpus, min(top_k, len(corpus.ids)))
            found = self._reranked(asked, corpus, items, near, self.k, top_k)
        else:
            items, near = _given(asked, corpus, top_ranked)
            found = self._reranked(asked, corpus, items, near, items.shape[1], top_k)
        return found | {name: {} for name in asked.bad}

    @property
    def mteb_model_meta(self) -> Any:
        """Metadata of the model, under which mteb files results."""
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

    def _read(self, rows: Any, task_metadata: Any, role: str) -> "_Side":
        """Encode queries (role "query") or corpus ("document")."""
        from mteb.types import PromptType

        modalities = list(task_metadata.get_modalities(PromptType(role)))
        if modalities not in (["text"], ["image"]):
            raise ValueError(
                f"{task_metadata.name}: a {role} is {' and '.join(modalities)}; an EDJE scores "
                "texts against images, so it must be either text or image"
            )
        (kind,) = modalities
        if kind not in rows.column_names:
            raise ValueError(f"{task_metadata.name}: no column {kind!r} for a {role}")
        ids = [str(name) for name in rows["id"]]
        bad: dict[str, str] = {}
        side = self._texts(ids, rows, bad) if kind == "text" else self._images(ids, rows, bad)
        for name, reason in bad.items():
            log.warning("%s: left out %s %r: %s", task_metadata.name, role, name, reason)
        if are_too_many(len(bad), len(ids), self.max_bad):
            listed = "\n".join(f"  {role} {name!r}: {reason}" for name, reason in bad.items())
            raise ValueError(
                f"{task_metadata.name}: {len(bad)} of {len(ids)} cannot be used, more than"
                f" max_bad={self.max_bad:g} allows. Mend them or raise the limit:\n{listed}"
            )
        return side

    def _texts(self, ids: list[str], rows: Any, bad: dict[str, str]) -> "_Side":
        good, texts = [], []
        for name, row in zip(ids, rows, strict=True):
            if row["text"] is None:
                bad[name] = "has no text"
                continue
            good.append(name)
            texts.append(f"{row.get('title') or ''} {row['text']}".strip())
        return _Side(good, self.reranker.embed_texts(texts), bad, texts=texts)

    def _images(self, ids: list[str], rows: Any, bad: dict[str, str]) -> "_Side":
        recipe, runtime, rows = self.reranker.config.image, self.reranker.runtime, _undecoded(rows)
        good: list[str] = []
        parts: list[Encoded] = [runtime.encode_images(stack_images([], recipe))]
        batches = cut_into(range(len(rows)))
        for batch in read_batches(lambda row: _pixels(rows[row]["image"], recipe), batches):
            good += [ids[row] for row in batch.records]
            bad |= {ids[row]: reason for row, reason in batch.bad.items()}
            parts.append(runtime.encode_images(stack_images(batch.values, recipe)))
        tokens = np.concatenate([part.tokens for part in parts])
        embeddings = np.concatenate([part.embeddings for part in parts])
        return _Side(good, embeddings, bad, tokens=tokens)

    def _reranked(
        self,
        asked: "_Side",
        corpus: "_Side",
        items: Int[np.ndarray, "q n"],
        near: Float[np.ndarray, "q n"],
        depth: int,
        top_k: int,
    ) -> dict[str, dict[str, float]]:
        """The first `depth` of each query's items by score, then the others as they stand.

        Items come nearest first; -1 is no item, and all of a query's stand last.
        """
        query, place = np.nonzero(items[:, :depth] >= 0)
        item = items[query, place]
        texts, images = (corpus, asked) if asked.texts is None else (asked, corpus)
        pairs = (item, query) if asked.texts is None else (query, item)
        runtime = self.reranker.runtime
        assert texts.texts is not None
        ids, known = runtime.joint_tokenizer(texts.texts), near[query, place]
        logits = runtime.score_pairs(ids, images.tokens, *pairs, known)
        if not np.isfinite(logits).all():
            i = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise ValueError(
                f"the model gave {logits[i]} for query {asked.ids[query[i]]!r} and document "
                f"{corpus.ids[item[i]]!r}; check the model's weights"
            )
        head = np.full_like(items[:, :depth], -np.inf, np.float32)
        head[query, place] = add_cosines(logits, near[query, place], self.similarity_weight)
        order = np.argsort(-head, axis=1, kind="stable")
        # What was not scored stands below whatever was, by its cosine.
        least = np.min(head, axis=1, keepdims=True, where=np.isfinite(head), initial=0.0)
        scores = np.hstack([np.take_along_axis(head, order, axis=1), near[:, depth:] - 2 + least])
        ranked = np.hstack([np.take_along_axis(items[:, :depth], order, axis=1), items[:, depth:]])
        ranked, values = ranked[:, :top_k].tolist(), strictly_decreasing(scores[:, :top_k]).tolist()
        return {
            name: {corpus.ids[i]: value for i, value in zip(*row, strict=True) if i >= 0}
            for name, *row in zip(asked.ids, ranked, values, strict=True)
        }


class _Side:
    """Queries or corpus: embeddings, texts or the tokens of images, and {id: what is wrong} of
    those that are in none of these."""

    def __init__(
        self,
        ids: list[str],
        embeddings: Float[np.ndarray, "n e"],
        bad: dict[str, str],
        texts: list[str] | None = None,
        tokens: Any = None,
    ):
        self.ids, self.embeddings, self.bad = ids, embeddings, bad
        self.texts, self.tokens = texts, tokens


Nearest = tuple[Int[np.ndarray, "q n"], Float[np.ndarray, "q n"]]
"""Items, nearest first, and their cosines; -1 and -inf where there are fewer."""


def _nearest(asked: _Side, corpus: _Side, count: int) -> Nearest:
    items = np.empty((len(asked.ids), count), np.int32)
    near = np.empty(items.shape, np.float32)
    for rows, cosines in similarity_blocks(asked.embeddings, corpus.embeddings):
        items[rows] = top_k(cosines, count)
        near[rows] = np.take_along_axis(cosines, items[rows], axis=1)
    return items, near


def _given(asked: _Side, corpus: _Side, top_ranked: Mapping[str, Sequence[str]]) -> Nearest:
    """The task's own candidates; by cosine, so that level scores keep the first stage's order."""
    number = {name: i for i, name in enumerate(corpus.ids)}
    given = [
        [number[name] for name in top_ranked.get(query, ()) if name not in corpus.bad]
        for query in asked.ids
    ]
    items = np.full((len(given), max(map(len, given), default=0)), -1, np.int32)
    near = np.full(items.shape, -np.inf, np.float32)
    for q, row in enumerate(given):
        items[q, : len(row)] = row
        near[q, : len(row)] = corpus.embeddings[row] @ asked.embeddings[q]
    order = np.argsort(-near, axis=1, kind="stable")
    return np.take_along_axis(items, order, axis=1), np.take_along_axis(near, order, axis=1)


def _undecoded(rows: Any) -> Any:
    """A dataset whose images are left in their files: one that is broken would end the reading."""
    from datasets import Image

    if isinstance(rows.features.get("image"), Image):
        return rows.cast_column("image", Image(decode=False))
    return rows


def _pixels(image: Any, recipe: ImageRecipe) -> UInt8[np.ndarray, "s s 3"]:
    """Image of a dataset: bytes or a path where it was left undecoded, or as it is.

    Raises:
        BadImage: there is none, or see `image_pixels`.
    """
    if image is None:
        raise BadImage("has no image")
    if not isinstance(image, Mapping):
        return image_pixels(image, recipe)
    if image["bytes"] is None:
        return image_pixels(image["path"], recipe)
    name = image["path"] or "an image in the dataset"
    return resize(decode(image["bytes"], name, recipe), recipe)
