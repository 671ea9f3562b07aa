"""Measurements of `edje tune`: recalls and speeds of what there is to choose, and calibrations."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig, TokenDtype
from edje_jax.evaluate.first_stage import StageChoice, rank_by
from edje_jax.evaluate.gallery import EncodedGallery, Progress, pair_scorer
from edje_jax.evaluation.calibration import calibrate
from edje_jax.evaluation.protocols import Remembering, SomeQueries, rerank_some
from edje_jax.evaluation.retrieval import BaseRanking, Retrieval
from edje_jax.evaluation.tuning import TuneResult
from edje_jax.models.token_formats import FORMATS, PackedTokens, pack
from edje_jax.runtimes.base import Embedded
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
    first_stages: Sequence[StageChoice] = (StageChoice(),)


@dataclasses.dataclass(frozen=True)
class Untimed:
    """Results of one way of reranking, whose speed is still to be measured."""

    results: Sequence[Callable[[float, float, float], TuneResult]]
    """Result of each first stage, given the median, the least and the largest number of pairs per
    second."""
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
    """Recalls of one model, called `model`, for each token dtype, depth and first stage.

    Each dtype scores a pair once, without the first stage's cosine.

    Returns the results, and the retrieval at the largest depth with the first of the dtypes and of
    the first stages.
    """
    assert isinstance(encoded.tokens, np.ndarray)
    captions = encoded.gallery.captions
    texts = runtime.encode_texts(captions)
    some_captions = np.unique(np.linspace(0, len(captions) - 1, QUERIES).astype(int))
    ids = runtime.joint_tokenizer([captions[i] for i in some_captions])
    # Timed later, when nothing but the joint encoder is in memory.
    reranker = dataclasses.replace(runtime, backbone_params={})
    config, depths = runtime.config, sorted(choices.depths, reverse=True)
    stages = list(dict.fromkeys(one.resolved(config.code_lengths) for one in choices.first_stages))
    bases = {(k, one): _base(one, encoded, texts, k) for k in depths for one in stages}
    untimed: list[Untimed] = []
    asked: list[SomeQueries] = []
    for dtype in choices.token_dtypes:
        tokens = pack(encoded.tokens, dtype)
        stored = dataclasses.replace(encoded, tokens=tokens)
        retrieve = partial(
            rerank_some,
            encoded.gallery,
            encoded.embeddings,
            texts.embeddings,
            Remembering(pair_scorer(runtime, stored, progress)),
            queries=choices.queries or len(captions),
        )
        # The deepest first: it scores nearly all pairs that the others ask for.
        found = {(k, one): retrieve(k, base=base) for (k, one), base in bases.items()}
        asked.append(found[depths[0], stages[0]])
        some_tokens = tokens[np.arange(min(len(tokens), depths[0]))]
        for k in choices.depths:
            results = [
                _result(model, config, dtype, one, found[k, one].retrieval) for one in stages
            ]
            rerank = _reranking(reranker, ids, some_tokens, k)
            untimed.append(Untimed(results, len(ids) * k, rerank))
    return untimed, asked[0]


def _base(
    stage: StageChoice, encoded: EncodedGallery, texts: Embedded, k: int
) -> Mapping[str, BaseRanking] | None:
    """Rankings of another first stage than exact search, which needs none."""
    return None if stage == StageChoice() else rank_by(stage, encoded, texts, k)


def _result(
    model: str, config: EdjeConfig, dtype: TokenDtype, stage: StageChoice, retrieval: Retrieval
) -> Callable[[float, float, float], TuneResult]:
    """Result as a function of its speeds."""
    joint, metrics = config.joint_encoder, retrieval.metrics()
    return partial(
        TuneResult,
        model,
        joint.deferred_layers,
        joint.online_vision,
        dtype,
        stage.label,
        retrieval.k,
        metrics["t2i"]["reranked"]["R@1"],
        metrics["i2t"]["reranked"]["R@1"],
        FORMATS[dtype].bytes_per_image(config.num_tokens, joint.hidden_size),
        stage.bytes_per_image(config.backbone.text.projection_size),
    )


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
        result(one.pairs / statistics.median(own), one.pairs / max(own), one.pairs / min(own))
        for one, own in zip(untimed, seconds, strict=True)
        for result in one.results
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
