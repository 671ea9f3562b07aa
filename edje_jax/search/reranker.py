"""`Reranker`: the model as users hold it. Images, texts, and the scores between them."""

import copy
import dataclasses
import os
import time
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig, InferencePrecision, RuntimeName
from edje_jax.evaluation.scores import add_cosines, cosines, probability, sigmoid
from edje_jax.evaluation.second_ranking import check_calibrated, check_same_frames
from edje_jax.index.image_index import ImageIndex
from edje_jax.index.store import check_model
from edje_jax.runtimes.base import Embedded, Encoded, Runtime
from edje_jax.runtimes.registry import open_runtime
from edje_jax.search.cascade import search_captions
from edje_jax.search.composed import rank_composed, search_queries
from edje_jax.search.inputs import (
    ItemLike,
    Pair,
    as_pairs,
    as_pixels,
    as_similarities,
    as_texts,
    as_tokens,
    decode_items,
)
from edje_jax.search.moments import with_moments
from edje_jax.search.query import Query, as_query, as_text_alone
from edje_jax.search.results import check_limits, ranked, to_results, with_details
from edje_jax.search.second_reranker import SecondReranker
from edje_jax.weights.folder import Model, load_model
from edje_jax.weights.model_stamp import model_stamp

Tokens = Float[Array, "n m d"] | Float[np.ndarray, "n m d"] | Iterable[Float[np.ndarray, "m d"]]
"""Compressed tokens of several images."""


class Reranker:
    """Scores texts against images that were encoded once.

        reranker = Reranker.from_pretrained("shapes-demo")
        tokens = reranker.encode_images(["dogs.jpg", "boat.jpg"])
        reranker.score_matrix(["two dogs", "a boat"], tokens)

    Images may be paths, PIL images, file contents or uint8 [H, W, 3]; texts, images and pairs come
    in any iterable, which is read once: lists, generators, `zip`, arrays, columns of a data frame.
    `score` and `score_matrix` give raw match logits, float32; `predict`, `rank` and `search` give
    scores from 0 to 1, which are probabilities of a match once the model is calibrated (`edje tune
    --save`), and the sigmoid of the logit before. Texts and pairs are padded to a few fixed shapes,
    so that calls of any size reuse the same compiled programs.
    """

    def __init__(
        self,
        model: Model,
        precision: InferencePrecision = "auto",
        runtime: RuntimeName = "jax",
        encoder_precision: InferencePrecision | None = None,
    ):
        self.runtime: Runtime = open_runtime(model, precision, runtime, encoder_precision)
        self.source = model.source
        self.calibration: Calibration = model.calibration
        self.then: SecondReranker | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        precision: InferencePrecision = "auto",
        runtime: RuntimeName = "jax",
        encoder_precision: InferencePrecision | None = None,
    ) -> "Reranker":
        """Load a model folder, a training workdir, a hub id, or the shipped "shapes-demo".

        Args:
            precision: "auto" is bfloat16 on GPU and TPU, and float32 on CPU.
            runtime: what scores pairs: "jax", or "onnx" for ONNX Runtime on CPUs.
            encoder_precision: precision of encoding images, if it is to be another; None is that of
                `precision`, but "auto" for int8.

        Raises:
            FileNotFoundError, ValueError, BadWeights, WeightMismatch: see `load_model`.
            ValueError: there is no such runtime or precision, or the runtime has not that one.
            ModuleNotFoundError: the runtime is not installed; the message says how to get it.
        """
        return cls(load_model(os.fspath(name)), precision, runtime, encoder_precision)

    @property
    def config(self) -> EdjeConfig:
        """Shapes of every part."""
        return self.runtime.config

    # --- offline ----------------------------------------------------------------------------------

    def encode_images(
        self,
        images: Iterable[ItemLike] | None = None,
        *,
        pixel_values: Float32[np.ndarray, "n s s 3"] | None = None,
        dtype: jax.typing.DTypeLike = np.float32,
    ) -> Float[np.ndarray, "n m d"]:
        """Compressed tokens of images, or of pixels that are normalised already; after the
        deferred layers, where the model has any. A model of videos also takes paths of videos, and
        lists of frames; an image is a video of one frame.

        Raises:
            BadImage: an image cannot be read; the message says which.
            ValueError: a single image, pixels of another shape than the model takes, or neither or
                both given.
        """
        return self._encode(images, pixel_values).tokens.astype(dtype)

    def embed_images(
        self,
        images: Iterable[ItemLike] | None = None,
        *,
        pixel_values: Float32[np.ndarray, "n s s 3"] | None = None,
    ) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings, unit length."""
        return self._encode(images, pixel_values).embeddings

    def embed_texts(self, texts: Iterable[str]) -> Float32[np.ndarray, "n e"]:
        """First-stage embeddings, unit length; their products with images' are cosines."""
        return self.runtime.embed_texts(as_texts(texts))

    # --- online -----------------------------------------------------------------------------------

    def score(
        self,
        texts: Iterable[str],
        tokens: Tokens,
        similarities: Float[np.ndarray, " n"] | None = None,
    ) -> Float32[np.ndarray, " n"]:
        """Match logits, pair by pair.

        `similarities` are the pairs' cosines (`embed_texts`, `embed_images`), which only a model
        with a similarity prior needs.

        Raises:
            ValueError: there are not as many texts as images, or not one cosine a pair; the tokens
                are another model's; or the model has a similarity prior and there are no cosines.
        """
        texts, stored = as_texts(texts), self._tokens(tokens)
        if len(texts) != len(stored):
            raise ValueError(
                f"score takes pairs: {len(texts)} texts for {len(stored)} images; for every text"
                " against every image use score_matrix"
            )
        rows = np.arange(len(texts))
        return self._score(texts, stored, rows, rows, as_similarities(similarities, rows.shape))

    def score_matrix(
        self,
        texts: Iterable[str],
        tokens: Tokens,
        similarities: Float[np.ndarray, "t n"] | None = None,
    ) -> Float32[np.ndarray, "t n"]:
        """Match logits of every text against every image; `similarities` are their cosines, of
        which only a model with a similarity prior needs any. Raises as `score` does."""
        texts, stored = as_texts(texts), self._tokens(tokens)
        shape = (len(texts), len(stored))
        text_index, image_index = (index.reshape(-1) for index in np.indices(shape))
        known = as_similarities(similarities, shape)
        return self._score(texts, stored, text_index, image_index, known).reshape(shape)

    def predict(
        self, pairs: Iterable[Pair] | Pair, *, raw_scores: bool = False
    ) -> Float32[np.ndarray, " n"] | np.float32:
        """Score of each (text, image) pair from 0 to 1, or its logit; the probability of a match if
        the model is calibrated.

        A single pair gives a single number, as in sentence-transformers. An image that stands in
        several pairs is encoded once.

        Raises:
            BadImage: an image cannot be read; the message says of which pair.
            ValueError: something is no pair of a text and an image.
        """
        checked, single = as_pairs(pairs)
        images: list[ItemLike] = []
        place: dict[Any, int] = {}
        names, rows = [], []
        for i, (_, image) in enumerate(checked):
            key = os.fspath(image) if isinstance(image, str | os.PathLike) else id(image)
            if key not in place:
                place[key] = len(images)
                images.append(image)
                names.append("the image of the pair" if single else f"the image of pairs[{i}]")
            rows.append(place[key])
        pixels = decode_items(images, self.config, names)
        encoded = self.runtime.encode_images(pixels)
        number = {text: i for i, text in enumerate(dict.fromkeys(text for text, _ in checked))}
        text_index = np.array([number[text] for text, _ in checked], int)
        image_index = np.array(rows, int)
        known = self._cosines(list(number), encoded, text_index, image_index)
        logits = self._score(list(number), encoded.tokens, text_index, image_index, known)
        scores = logits
        if not raw_scores:
            scores = probability(self._combined(logits, known), self.calibration)
        return scores[0] if single else scores

    def rank(
        self, text: str | Query, images: Iterable[ItemLike], *, top_k: int | None = None
    ) -> list[dict[str, Any]]:
        """Images by falling score: [{"corpus_id", "score"}, ...].

        The form of sentence-transformers' `CrossEncoder.rank`. Ties keep the order given. In place
        of a text there may be a `Query` of several parts, of which `like` needs an index.

        Raises:
            BadImage: an image cannot be read; the message says which.
            ValueError: `top_k` is below 0.
        """
        asked, encoded = as_query(text, "text"), self._encode(images, None)
        if isinstance(asked, Query):
            combined = rank_composed(self.runtime, asked, encoded, self.calibration)
            return ranked(combined, sigmoid(combined.astype(np.float32)), top_k)
        texts = [asked]
        image_index = np.arange(len(encoded.tokens))
        text_index = np.zeros_like(image_index)
        known = self._cosines(texts, encoded, text_index, image_index)
        logits = self._score(texts, encoded.tokens, text_index, image_index, known)
        combined = self._combined(logits, known)
        return ranked(combined, probability(combined, self.calibration), top_k)

    def search(
        self,
        index: ImageIndex,
        queries: Iterable[str | Query],
        *,
        k: int = 100,
        top_k: int | None = 10,
        min_score: float | None = None,
        ids: Iterable[str] | None = None,
        where: str | None = None,
        details: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """The images of an index that texts describe, or that fit queries of several parts.

        For each query its k nearest by embedding are reranked; the best `top_k` come back as
        {"id", "score", "similarity", "base_rank"}: score from 0 to 1, cosine, and place (from 1)
        among the k before they were reranked. Equal scores keep the first stage's order. With
        `min_score` only results that reach it come back, so that a list may be empty: nothing of
        the index matches. With `ids` or `where`, a filter such as "year >= 2010" (`index.where`),
        only those images are searched. The first stage's cosine counts as `edje tune` chose. With
        `details` results also carry "first_stage", its name, and "seconds", the time of each part
        of the search, for all queries together. Where a second model follows (`followed_by`), it
        reranks the best of the k, before the rest of them; queries are texts then. Of videos, texts
        also tell "moment" and "frame" (`search.moments`).

        Raises:
            BadStore: the index was built with another model.
            BadImage: the image of a query cannot be read.
            ValueError: a number is out of range, `ids` are no list of strings, `where` cannot be
                read (`BadWhere`), a query asks for what is like an image that the index has not, or
                the second model's index has none of the best images.
        """
        check_model(index.store, self.stamp)
        check_limits(k, top_k, min_score)
        then, chosen = self.then, index.select(ids, where)
        asked = as_texts(queries, as_text_alone if then else as_query, "queries")
        found, timings = search_queries(self.runtime, index, asked, k, self.calibration, chosen)
        seconds = dataclasses.asdict(timings)
        if then:
            texts = [*map(str, asked)]
            found, seconds["then"] = then.rerank(texts, index, found, self.calibration)
        began = time.perf_counter()
        results = [
            with_moments(self.runtime, index, query, to_results(one, top_k, min_score))
            for query, one in zip(asked, found, strict=True)
        ]
        seconds["moments"] = time.perf_counter() - began
        out = [
            [{"id": index.store.row(image).id, **scores} for image, scores in one]
            for one in results
        ]
        return with_details(out, index, seconds) if details else out

    def second(self, index: ImageIndex, *, k: int = 20, weight: float = 1.0) -> SecondReranker:
        """This model as the last step of another one's searches (`followed_by`), with an index of
        its own over the same images: it reranks the best k, by (1 - weight) first + weight second
        logit.

        Raises:
            BadStore: the index was built with another model.
            ValueError: `k` or `weight` is out of range.
        """
        check_model(index.store, self.stamp)
        return SecondReranker(self.runtime, index, self.calibration, k, weight)

    def followed_by(self, then: SecondReranker) -> "Reranker":
        """This model, whose `search` has the best images reranked by a second one.

        Raises:
            ValueError: the second model reads other frames of videos.
        """
        check_same_frames(self.config, then.runtime.config)
        check_calibrated(self.calibration, then.calibration, then.weight)
        followed = copy.copy(self)
        followed.then = then
        return followed

    def search_captions(
        self,
        index: ImageIndex,
        images: Iterable[ItemLike],
        *,
        k: int = 100,
        top_k: int | None = 10,
        min_score: float | None = None,
        ids: Iterable[str] | None = None,
        where: str | None = None,
        details: bool = False,
    ) -> list[list[dict[str, Any]]]:
        """The captions of an index that describe images, as `search` has it, with "caption".

        "id" is the image that the caption belongs to; `ids` and `where` choose among these images.

        Raises:
            BadStore: the index was built with another model.
            BadImage: an image cannot be read.
            ValueError: the index has no captions, or `k`, `top_k` or `min_score` is out of range.
        """
        check_model(index.store, self.stamp)
        check_limits(k, top_k, min_score)
        encoded = self._encode(images, None)
        queries = Embedded(encoded.embeddings, encoded.projections)
        found, timings = search_captions(
            self.runtime, index, encoded.tokens, queries, k, self.calibration,
            index.select(ids, where),
        )  # fmt: skip
        out = []
        for one in found:
            results = []
            for row, scores in to_results(one, top_k, min_score):
                image, caption = index.store.captions[row]
                results.append({"id": index.store.row(image).id, "caption": caption, **scores})
            out.append(results)
        return with_details(out, index, dataclasses.asdict(timings)) if details else out

    @property
    def stamp(self) -> dict[str, Any]:
        """The stamp of this model on an index: see `weights.model_stamp.model_stamp`."""
        return model_stamp(self.config, self.fingerprint, self.source)

    @cached_property
    def fingerprint(self) -> str:
        """32 hex digits over every parameter and shape of the model."""
        return self.runtime.fingerprint()

    @property
    def num_parameters(self) -> dict[str, int]:
        """{"offline", "online"}: parameters of the part that encodes images and of the one that
        scores. Deferred layers run in both, and are counted as online, as are the first stage's
        heads of captions."""
        return self.runtime.count_parameters()

    def _encode(self, images: Iterable[ItemLike] | None, pixel_values: Any) -> Encoded:
        if images is not None and pixel_values is None:
            return self.runtime.encode_images(decode_items(images, self.config))
        if images is not None or pixel_values is None:
            raise ValueError("give either images or pixel_values")
        return self.runtime.encode_pixels(as_pixels(pixel_values, self.config.image))

    def _tokens(self, tokens: Tokens) -> Any:
        return as_tokens(tokens, (self.config.num_tokens, self.config.joint_encoder.hidden_size))

    def _cosines(
        self,
        texts: list[str],
        encoded: Encoded,
        text_index: Int[np.ndarray, " n"],
        image_index: Int[np.ndarray, " n"],
    ) -> Float32[np.ndarray, " n"] | None:
        """Cosines of pairs of texts and images; None for a model that does not ask for them."""
        if not (self.config.similarity_prior or self.calibration.similarity_weight):
            return None
        embedded = self.runtime.embed_texts(texts)
        return cosines(embedded, encoded.embeddings, text_index, image_index)

    def _combined(
        self, logits: Float32[np.ndarray, " n"], known: Float32[np.ndarray, " n"] | None
    ) -> Float32[np.ndarray, " n"]:
        """Logits with the first stage's cosine mixed in, as the model was tuned."""
        if known is None:
            return logits
        return add_cosines(logits, known, self.calibration.similarity_weight)

    def _score(self, texts, tokens, text_index, image_index, similarities) -> np.ndarray:
        ids = self.runtime.joint_tokenizer(texts)
        return self.runtime.score_pairs(ids, tokens, text_index, image_index, similarities)
