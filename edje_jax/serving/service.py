"""What the server computes: batches of searches and rerankings, on one thread."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edje_jax.models.token_formats import unpack
from edje_jax.retrieval.first_stage import QUERY_BATCHES
from edje_jax.retrieval.index import ImageIndex
from edje_jax.retrieval.reranker import Reranker, listed
from edje_jax.retrieval.search import Found, Seconds, search_images, search_texts
from edje_jax.serving.documents import Pictures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """A text that looks for pictures."""

    query: str
    k: int


@dataclass(frozen=True)
class Captions:
    """A picture of the index that looks for captions."""

    picture: int
    k: int


@dataclass(frozen=True)
class Rerank:
    """A text and the pictures to order for it."""

    query: str
    pictures: Pictures


Job = Search | Captions | Rerank


@dataclass(frozen=True)
class Answer:
    """Of a search: its candidates, reranked, and what its batch took."""

    found: Found
    seconds: Seconds


class Service:
    """A model and an index, asked with lists of jobs."""

    def __init__(self, reranker: Reranker, index: ImageIndex):
        self.reranker = reranker
        self.index = index

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """An `Answer` for every search, float32 logits for every reranking, or the exception
        that it failed with. Jobs of one kind share their calls of the model."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            groups[type(job), getattr(job, "k", 0)].append(place)
        out: list[Any] = [None] * len(jobs)
        for (kind, _), places in groups.items():
            group = [jobs[place] for place in places]
            try:
                results = self._runners[kind](group)
            except Exception as error:
                log.exception("%d %s failed", len(group), kind.__name__)
                results = [error] * len(group)
            for place, result in zip(places, results, strict=True):
                out[place] = result
        return out

    @property
    def _runners(self) -> dict[type, Callable[[list[Any]], list[Any]]]:
        return {Search: self._search, Captions: self._captions, Rerank: self._rerank}

    def _search(self, jobs: list[Search]) -> list[Answer]:
        queries = [job.query for job in jobs]
        found, seconds = search_images(self.reranker.engine, self.index, queries, jobs[0].k)
        return [Answer(one, seconds) for one in found]

    def _captions(self, jobs: list[Captions]) -> list[Answer]:
        rows = np.array([job.picture for job in jobs])
        tokens = np.asarray(unpack(self.index.tokens[rows]), np.float32)
        embeddings = self.index.store.embeddings[rows]
        found, seconds = search_texts(
            self.reranker.engine, self.index, tokens, embeddings, jobs[0].k
        )
        return [Answer(one, seconds) for one in found]

    def _rerank(self, jobs: list[Rerank]) -> list[np.ndarray]:
        engine = self.reranker.engine
        ids = engine.joint_tokenizer([job.query for job in jobs])
        sizes = [len(job.pictures.rows) + len(job.pictures.pixels) for job in jobs]
        logits = [np.empty(size, np.float32) for size in sizes]
        indexed = [
            (i, p, row) for i, job in enumerate(jobs) for p, row in job.pictures.rows.items()
        ]
        sent = [(i, p, x) for i, job in enumerate(jobs) for p, x in job.pictures.pixels.items()]
        if indexed:
            owner, rows = np.array([i for i, _, _ in indexed]), np.array([r for _, _, r in indexed])
            scores = engine.score_pairs(ids, self.index.tokens, owner, rows)
            for (i, place, _), score in zip(indexed, scores, strict=True):
                logits[i][place] = score
        if sent:
            tokens = engine.encode_images(np.stack([pixels for _, _, pixels in sent])).tokens
            owner = np.array([i for i, _, _ in sent])
            scores = engine.score_pairs(ids, tokens, owner, np.arange(len(sent)))
            for (i, place, _), score in zip(sent, scores, strict=True):
                logits[i][place] = score
        return logits

    def results(self, found: Found, top_k: int) -> list[dict[str, Any]]:
        """A search's best pictures in words."""
        store = self.index.store
        return [
            {"id": store.row(row).id, "captions": store.row(row).captions, **scores}
            for row, scores in listed(found, top_k)
        ]

    def base_order(self, found: Found, top_k: int) -> list[dict[str, Any]]:
        """The first stage's best pictures, with where reranking put them."""
        store, out = self.index.store, []
        for place in np.argsort(found.base_ranks, kind="stable")[:top_k]:
            row = store.row(int(found.rows[place]))
            similarity = float(found.similarities[place])
            out.append({"id": row.id, "similarity": similarity, "rank": int(place) + 1})
        return out

    def text_tokens(self, text: str) -> int:
        """Ids that a text takes in the joint encoder."""
        ids = self.reranker.engine.joint_tokenizer([text])
        return int((ids != self.reranker.config.joint_encoder.pad_token_id).sum())

    def examples(self, count: int = 6) -> list[str]:
        """Captions spread over the index, to try the search with; none where there are none."""
        captions = self.index.store.captions
        step = max(len(captions) // count, 1)
        return [caption for _, caption in captions[::step][:count]]

    def warm(self, ks: Sequence[int] = (10, 20, 50, 100, 200)) -> None:
        """Compile what requests will ask for, so that none of them waits for that.

        `ks` are the depths that searches will ask for; another one compiles when it comes.
        """
        if not len(self.index):
            return
        began = time.perf_counter()
        engine, manifest = self.reranker.engine, self.index.store.manifest
        # Tokens as they are kept, and as pictures that come with a request have them.
        engine.warm(self.index.tokens)
        engine.warm(np.zeros((1, manifest.num_tokens, manifest.width), np.float32))
        engine.warm_images()
        stages = [self.index.images] + ([self.index.texts] if self.index.store.captions else [])
        for stage in stages:
            for k in ks:
                for queries in QUERY_BATCHES:
                    stage.nearest(np.zeros((queries, manifest.embedding_size), np.float32), k)
        log.info("compiled in %.0f s", time.perf_counter() - began)
