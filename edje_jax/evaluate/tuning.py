"""Measurements of `edje tune`: recall and speed of token dtypes and depths, and calibrations."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import TokenDtype
from edje_jax.evaluate.gallery import EncodedGallery, Progress, pair_scorer
from edje_jax.evaluation.calibration import calibrate
from edje_jax.evaluation.protocols import SomeQueries, rerank_some
from edje_jax.evaluation.tuning import TuneResult
from edje_jax.models.token_formats import FORMATS, PackedTokens, pack
from edje_jax.runtimes.jax import JaxRuntime

log = logging.getLogger(__name__)

ROUNDS = 5
"""Timings of each result, of which the median counts."""
QUERIES = 8
"""Captions that are timed together, from all over the set, each with its own k candidates."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """Ways of reranking to compare, and the queries to compare them on."""

    depths: Sequence[int]
    token_dtypes: Sequence[TokenDtype]
    queries: int | None = None
    """Number of captions, and of images, that are asked for; None asks for all."""


@dataclasses.dataclass(frozen=True)
class Untimed:
    """Result whose speed is still to be measured."""

    result: Callable[[float, float, float], TuneResult]
    """Result, given the median, the least and the largest number of pairs per second."""
    pairs: int
    """Pairs that `rerank` scores."""
    rerank: Callable[[], object]
    """Reranking of a few queries."""


def measure_recalls(
    runtime: JaxRuntime,
    model: str,
    encoded: EncodedGallery,
    choices: Choices,
    progress: Progress | None = None,
) -> tuple[list[Untimed], SomeQueries]:
    """Recalls of one model, called `model`, for each token dtype and depth.

    Each dtype is scored once, at the largest depth, without the first stage's cosine.

    Returns the results, and the retrieval at the largest depth with the first of the dtypes.
    """
    assert isinstance(encoded.tokens, np.ndarray)
    captions = encoded.gallery.captions
    texts = runtime.embed_texts(captions)
    some_captions = np.unique(np.linspace(0, len(captions) - 1, QUERIES).astype(int))
    ids = runtime.joint_tokenizer([captions[i] for i in some_captions])
    # Timed later, when nothing but the joint encoder is in memory.
    reranker = dataclasses.replace(runtime, backbone_params={})
    joint, deepest = runtime.config.joint_encoder, max(choices.depths)
    untimed: list[Untimed] = []
    asked: list[SomeQueries] = []
    for dtype in choices.token_dtypes:
        tokens = pack(encoded.tokens, dtype)
        stored = dataclasses.replace(encoded, tokens=tokens)
        score_pairs = pair_scorer(runtime, stored, progress)
        asked.append(
            rerank_some(
                encoded.gallery,
                encoded.embeddings,
                texts,
                score_pairs,
                deepest,
                choices.queries or len(captions),
            )
        )
        some_tokens = tokens[np.arange(min(len(tokens), deepest))]
        for k in choices.depths:
            metrics = asked[-1].retrieval.at(k=k).metrics()
            result = partial(
                TuneResult,
                model,
                joint.deferred_layers,
                joint.online_vision,
                dtype,
                k,
                metrics["t2i"]["reranked"]["R@1"],
                metrics["i2t"]["reranked"]["R@1"],
                FORMATS[dtype].bytes_per_image(runtime.config.num_tokens, joint.hidden_size),
            )
            untimed.append(Untimed(result, len(ids) * k, _reranking(reranker, ids, some_tokens, k)))
    return untimed, asked[0]


def _reranking(
    runtime: JaxRuntime, ids: np.ndarray, tokens: PackedTokens, k: int
) -> Callable[[], object]:
    """Reranking of k candidates for each of some captions, to be timed."""
    text = np.repeat(np.arange(len(ids)), k)
    image = np.arange(len(text)) % len(tokens)
    cosines = np.zeros(len(text), np.float32)
    return partial(runtime.score_pairs, ids, tokens, text, image, cosines)


def measure_speeds(
    untimed: Sequence[Untimed], progress: Progress | None = None
) -> list[TuneResult]:
    """Results with their speeds, timed in turns: a slow spell of the machine slows all of them."""
    seconds: list[list[float]] = [[] for _ in untimed]
    for number in range(ROUNDS + 1):
        for one, own in zip(untimed, seconds, strict=True):
            began = time.perf_counter()
            one.rerank()
            if number:  # The first compiles
                own.append(time.perf_counter() - began)
        if progress:
            progress("timings", number, ROUNDS)
    return [
        one.result(one.pairs / statistics.median(own), one.pairs / max(own), one.pairs / min(own))
        for one, own in zip(untimed, seconds, strict=True)
    ]


def fit_calibration(asked: SomeQueries, precision: float, data: str) -> Calibration | None:
    """Calibration that suits a retrieval on a set called `data`; None, and a warning, if its scores
    do not tell right from wrong."""
    try:
        found = calibrate(*asked, precision)
    except ValueError as error:
        log.warning("no calibration: %s", error)
        return None
    return dataclasses.replace(found, fitted={"data": data, **found.fitted})
