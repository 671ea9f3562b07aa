"""Computations of the server: batches of searches and rerankings."""

import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.evaluation.scores import add_cosines, cosines, probability, sigmoid
from edje_jax.first_stage.base import BeyondLimits
from edje_jax.first_stage.blockwise import QUERY_BATCHES
from edje_jax.first_stage.milvus import StaleCollection
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.shard_files import BadStore
from edje_jax.models.token_formats import PackedTokens, unpack
from edje_jax.search.cascade import search_captions
from edje_jax.search.composed import combine, concatenate_scores, score_parts, search_queries
from edje_jax.search.moments import Moment, find_moments, tells_moments, warm_moments
from edje_jax.search.query import Query, read_query, stored_images
from edje_jax.search.reranker import Reranker
from edje_jax.search.results import RankedCandidates, to_results
from edje_jax.serving.documents import Images
from edje_jax.serving.jobs import Answer, CaptionsJob, Job, Reranked, RerankJob, SearchJob
from edje_jax.serving.videos import file_facts, video_facts

log = logging.getLogger(__name__)

DEPTHS = (10, 20, 50, 100, 200)
"""Depths of searches that are compiled before a request asks for them."""


def _model_name(source: str) -> str:
    path = Path(source).expanduser()
    if not path.exists():
        return source
    path = path.resolve()
    return (path.parent.name if path.name == "model" else "") or path.name


class Service:
    """Model and index, which compute lists of jobs."""

    def __init__(self, reranker: Reranker, index: ImageIndex):
        self.reranker = reranker
        self.index = index
        self.name = _model_name(reranker.source)
        """Model name for clients: a hub id or the workdir's name, never a path of the server."""

    def run(self, jobs: Sequence[Job]) -> list[Any]:
        """An `Answer` for every search, `Reranked` for every reranking, or the exception that it
        failed with. Jobs of one kind share their calls of the model."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            groups[job.batch_key].append(place)
        out: list[Any] = [None] * len(jobs)
        for places in groups.values():
            group = [jobs[place] for place in places]
            kind = type(group[0])
            try:
                results = self._runners[kind](group)
            except (BeyondLimits, StaleCollection) as error:
                log.warning("%d %s: %s", len(group), kind.__name__, error)
                results = [error] * len(group)
            except Exception as error:
                log.exception("%d %s failed", len(group), kind.__name__)
                results = [error] * len(group)
            for place, result in zip(places, results, strict=True):
                out[place] = result
        return out

    @property
    def _runners(self) -> dict[type, Callable[[list[Any]], list[Any]]]:
        return {SearchJob: self._search, CaptionsJob: self._captions, RerankJob: self._rerank}

    def _search(self, jobs: list[SearchJob]) -> list[Answer]:
        queries = [job.query for job in jobs]
        chosen = self.index.select(jobs[0].ids, jobs[0].where)
        found, seconds = search_queries(
            self.reranker.runtime, self.index, queries, jobs[0].k, self.reranker.calibration, chosen
        )
        began = time.perf_counter()
        moments = [self._moments(job, one) for job, one in zip(jobs, found, strict=True)]
        if any(moments):
            seconds = dataclasses.replace(seconds, moments=time.perf_counter() - began)
        return [Answer(one, seconds, told) for one, told in zip(found, moments, strict=True)]

    def _moments(self, job: SearchJob, found: RankedCandidates) -> dict[int, Moment]:
        """Moments of the results that are shown, by their rows; none where they cannot be told."""
        text = job.query if isinstance(job.query, str) else job.query.text
        runtime, store = self.reranker.runtime, self.index.store
        if not (text and store.frames and tells_moments(runtime)):
            return {}
        images = [image for image, _ in to_results(found, job.shown, job.min_score)]
        return dict(zip(images, find_moments(runtime, self.index, text, images), strict=True))

    def _captions(self, jobs: list[CaptionsJob]) -> list[Answer]:
        rows = np.array([job.image for job in jobs])
        tokens = np.asarray(unpack(self._tokens(rows)), np.float32)
        reranker, k = self.reranker, jobs[0].k
        chosen = self.index.select(jobs[0].ids, jobs[0].where)
        found, seconds = search_captions(
            reranker.runtime, self.index, tokens, stored_images(self.index, rows), k,
            reranker.calibration, chosen,
        )  # fmt: skip
        return [Answer(one, seconds) for one in found]

    def _tokens(self, rows: Int[np.ndarray, " n"]) -> PackedTokens:
        """Tokens of indexed images."""
        return self.index.tokens[rows]

    def _rerank(self, jobs: list[RerankJob]) -> list[Reranked]:
        if isinstance(query := jobs[0].query, Query):
            (job,) = jobs  # A batch of its own
            return [self._rerank_composed(query, job.images)]
        runtime, weight = self.reranker.runtime, self.reranker.calibration.similarity_weight
        queries = [job.query for job in jobs if isinstance(job.query, str)]
        ids = runtime.joint_tokenizer(queries)
        texts = None
        if runtime.config.similarity_prior or weight:
            texts = runtime.embed_texts(queries)
        sizes = [len(job.images.rows) + len(job.images.pixels) for job in jobs]
        logits_of = [np.empty(size, np.float32) for size in sizes]
        combined_of = [np.empty(size, np.float32) for size in sizes]

        def score(places: list[tuple[int, int]], tokens: Any, rows: np.ndarray, vectors: Any):
            """Score images, each for the job and at the place in it that `places` names."""
            owner = np.array([job for job, _ in places])
            known = None if texts is None else cosines(texts, vectors, owner, rows)
            logits = runtime.score_pairs(ids, tokens, owner, rows, known)
            combined = logits if known is None else add_cosines(logits, known, weight)
            for pair, (job, place) in enumerate(places):
                logits_of[job][place], combined_of[job][place] = logits[pair], combined[pair]

        indexed = [(i, p, row) for i, job in enumerate(jobs) for p, row in job.images.rows.items()]
        sent = [(i, p, x) for i, job in enumerate(jobs) for p, x in job.images.pixels.items()]
        if indexed:
            rows = np.array([row for _, _, row in indexed])
            places = [(i, p) for i, p, _ in indexed]
            score(places, self.index.tokens, rows, self.index.store.embeddings)
        if sent:
            made = runtime.encode_images(np.stack([pixels for _, _, pixels in sent]))
            score([(i, p) for i, p, _ in sent], made.tokens, np.arange(len(sent)), made.embeddings)
        return [
            Reranked(logits, combined, probability(combined, self.reranker.calibration))
            for logits, combined in zip(logits_of, combined_of, strict=True)
        ]

    def _rerank_composed(self, asked: Query, images: Images) -> Reranked:
        """Rerank images for a query of several parts."""
        runtime, index, calibration = self.reranker.runtime, self.index, self.reranker.calibration
        query = read_query(asked, runtime, index)
        texts = runtime.embed_texts(query.texts)
        places, parts = [*images.rows, *images.pixels], []
        if images.rows:
            rows = np.array(list(images.rows.values()))
            known = index.store.embeddings[rows]
            parts.append(score_parts(runtime, query, texts, index.tokens, rows, known, calibration))
        if images.pixels:
            made = runtime.encode_images(np.stack(list(images.pixels.values())))
            rows, known = np.arange(len(images.pixels)), made.embeddings
            parts.append(score_parts(runtime, query, texts, made.tokens, rows, known, calibration))
        logits = np.empty(len(places), np.float32)
        logits[places] = combine(query, concatenate_scores(parts), lambda: index.background)
        return Reranked(logits, logits, sigmoid(logits))

    def results(
        self, answer: Answer, top_k: int, min_score: float | None = None
    ) -> list[dict[str, Any]]:
        """Metadata and scores of a search's best images, and facts of those that are videos."""
        store = self.index.store
        out = []
        for image, scores in to_results(answer.found, top_k, min_score):
            row = store.row(image)
            facts = video_facts(store, image, row, answer.moments.get(image))
            out.append({"id": row.id, "captions": row.captions, **scores, **facts})
        return out

    def base_order(self, found: RankedCandidates, top_k: int) -> list[dict[str, Any]]:
        """First stage's best images, with their ranks after reranking."""
        store, out = self.index.store, []
        for place in np.argsort(found.base_ranks, kind="stable")[:top_k]:
            row = store.row(int(found.rows[place]))
            similarity = float(found.similarities[place])
            facts = {"similarity": similarity, "rank": int(place) + 1, **file_facts(row)}
            out.append({"id": row.id, **facts})
        return out

    def pair_tokens(self, texts: list[str]) -> int:
        """Number of tokens that the joint encoder reads for an image and each of some texts."""
        if not texts:
            return 0
        ids, config = self.reranker.runtime.joint_tokenizer(texts), self.reranker.config
        real = int((ids != config.joint_encoder.pad_token_id).sum())
        return real + len(texts) * config.num_tokens

    def examples(self, count: int = 6) -> list[str]:
        """Captions spread over the index, to try the search with; none where there are none."""
        captions = self.index.store.captions
        step = max(len(captions) // count, 1)
        return [captions[i][1] for i in range(0, len(captions), step)[:count]]

    def warm(self, ks: Sequence[int] = DEPTHS) -> None:
        """Compile what requests will ask for, and open metadata, so that none of them waits for
        that.

        `ks` are the depths that searches will ask for; another one compiles when it comes.
        """
        self.open_metadata()
        self.compile(ks)
        self.compile_moments()

    def open_metadata(self) -> None:
        """Open the metadata of all shards, for filters."""
        try:
            _ = self.index.store.metadata_kinds
        except (ModuleNotFoundError, BadStore) as error:
            log.warning("filters cannot be asked for: %s", error)

    def compile(self, ks: Sequence[int] = DEPTHS) -> None:
        """Compile what searches to these depths, and rerankings, will ask for."""
        if not len(self.index):
            return
        began = time.perf_counter()
        runtime, manifest = self.reranker.runtime, self.index.store.manifest
        # Tokens in the format of the index, and in that of images that come with a request.
        runtime.warm(self.index.tokens)
        runtime.warm(np.zeros((1, manifest.num_tokens, manifest.width), np.float32))
        runtime.warm_images()
        searched = [self.index.searched_images]
        if len(self.index.store.captions):
            searched.append(self.index.searched_captions)
        for one in searched:
            for depth in {one.depth(k) for k in ks}:
                for queries in QUERY_BATCHES:
                    one.stage.nearest(self._no_queries(queries), depth)
        log.info("compiled in %.0f s", time.perf_counter() - began)

    def compile_moments(self) -> None:
        """Compile what moments of results will ask for, where they can be told."""
        if len(self.index):
            warm_moments(self.reranker.runtime, self.index)

    def _no_queries(self, count: int) -> np.ndarray:
        """Queries of zeros, in the form that the first stage reads."""
        if self.index.bits is not None:
            return np.zeros((count, self.index.bits // 8), np.uint8)
        return np.zeros((count, self.index.store.manifest.embedding_size), np.float32)
