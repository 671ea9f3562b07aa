"""Measurements of a runtime on a captioned set, as an evaluation protocol asks for them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.config.captioner import CaptionScore
from edje_jax.data.labels import ImageLabels, read_labels
from edje_jax.evaluate.coco_ids import coco_ids
from edje_jax.evaluate.first_stage import (
    StageChoice,
    rank_by,
    stage_metrics,
    stage_vectors,
)
from edje_jax.evaluate.gallery import EncodedGallery, Progress, encode_gallery, pair_scorer
from edje_jax.evaluation.calibration import direction_reliability, precision_above
from edje_jax.evaluation.categories import category_metrics
from edje_jax.evaluation.eccv import eccv_metrics
from edje_jax.evaluation.intervals import gain_intervals
from edje_jax.evaluation.protocols import Timed, folds_summary, k_sweep, rerank_folds, weight_sweep
from edje_jax.evaluation.retrieval import DIRECTIONS, Gallery, Retrieval, rerank
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.types import Source


@dataclass(frozen=True)
class Protocol:
    """Choice of the measurements on a gallery.

    Raises:
        ValueError: folds or ECCV Caption, which are of exact search, with a first stage.
    """

    k: int = 10
    similarity_weight: float | None = None
    """Weight of the first stage; None for the model's own."""
    folds: int | None = None
    """Disjoint parts of the gallery to evaluate as well, each on its own; None for none."""
    k_sweep: Sequence[int] = ()
    """Depths to evaluate as well."""
    similarity_weights: Sequence[float] = ()
    """Weights of the first stage to evaluate as well."""
    first_stage: StageChoice | None = None
    """First stage whose candidates are reranked, and whose own recalls are told; None for exact
    search by embeddings."""
    categories: Path | None = None
    """Labels of the images, to measure mean average precision by categories as well."""
    eccv: Path | None = None
    """COCO's captions_val2014.json, to judge by CxC and ECCV Caption as well."""
    caption_score: CaptionScore | None = None
    """Score of a captioner that is measured; None for the model's own. A calibration of another
    score is left out."""

    def __post_init__(self):
        if self.first_stage and (self.folds or self.eccv):
            raise ValueError(
                f"first_stage {self.first_stage.name}: folds and eccv are measured by exact search;"
                " leave first_stage out"
            )

    @property
    def depth(self) -> int:
        """Candidates to score."""
        return max(self.k, *self.k_sweep) if self.k_sweep else self.k


@dataclass(frozen=True, eq=False)
class Measurement:
    """Outcome of a protocol on a set."""

    encoded: EncodedGallery
    retrieval: Retrieval
    extra: dict[str, Any]
    """Further measurements that the protocol asked for, as metrics.json holds them."""
    seconds: dict[str, float]
    """Seconds that the parts took: {"encode", "rerank"}."""
    calibration: Calibration = UNTUNED
    """Calibration of the scores that were measured."""

    @property
    def metrics(self) -> dict[str, Any]:
        """All measurements, as metrics.json holds them."""
        return {**self.retrieval.metrics(), **self.extra}


def measure_source(
    runtime: Runtime,
    source: Source,
    protocol: Protocol = Protocol(),
    calibration: Calibration = UNTUNED,
    *,
    max_bad: float = 0.01,
    progress: Progress | None = None,
) -> Measurement:
    """Encode a captioned set and measure the runtime on it; `Reranker.runtime` is a runtime.

    Raises:
        TooManyBadRecords: more than `max_bad` of the records are bad.
        ValueError: the set has no captions, or set or model is not what the protocol needs.
    """
    started = time.perf_counter()
    runtime, calibration = scored_by(runtime, calibration, protocol.caption_score)
    encoded = encode_gallery(runtime, source, max_bad, progress)
    encoded_at = time.perf_counter()
    retrieval, extra = measure(runtime, encoded, protocol, progress, calibration)
    seconds = {"encode": encoded_at - started, "rerank": time.perf_counter() - encoded_at}
    return Measurement(encoded, retrieval, extra, seconds, calibration)


def scored_by(
    runtime: Runtime, calibration: Calibration, score: CaptionScore | None
) -> tuple[Runtime, Calibration]:
    """Runtime of that score of a captioner, and its calibration: none of a score that is not the
    folder's own. Both as they are for None.

    Raises:
        ValueError: see `with_caption_score`.
    """
    if score is None:
        return runtime, calibration
    changed = with_caption_score(runtime, score)
    return changed, calibration if changed.config == runtime.config else UNTUNED


def with_caption_score(runtime: Runtime, score: CaptionScore) -> Runtime:
    """Runtime of a captioner whose pairs get another score of the same decoders.

    Raises:
        ValueError: the model is no captioner, or another runtime than JAX's scores its pairs.
    """
    captioner = runtime.config.captioner
    if captioner is None or not isinstance(runtime, JaxRuntime):
        raise ValueError(
            f"caption_score {score}: only a captioner in JAX has a choice of scores, and this"
            f" {type(runtime).__name__} has a model of the kind {runtime.config.kind}"
        )
    config = replace(runtime.config, captioner=replace(captioner, score=score))
    return replace(runtime, config=config)


def measure(
    runtime: Runtime,
    encoded: EncodedGallery,
    protocol: Protocol,
    progress: Progress | None = None,
    calibration: Calibration = UNTUNED,
) -> tuple[Retrieval, dict[str, Any]]:
    """Retrieval at depth k, and the protocol's other measurements as metrics.json holds them.

    Raises:
        ValueError: set or model is not what the protocol needs.
    """
    # Refuse another data set before the work.
    ids = coco_ids(encoded.gallery, protocol.eccv) if protocol.eccv else None
    labels = None
    if protocol.categories:
        labels = read_labels(protocol.categories, encoded.gallery.image_ids)
    stage = protocol.first_stage
    if stage:
        stage = stage.resolved(runtime.config.code_lengths)
    if protocol.k_sweep:
        # Compile first, or the rate would include compilation.
        runtime.warm(encoded.tokens)
    score_pairs = Timed(pair_scorer(runtime, encoded, progress))
    gallery, weight = encoded.gallery, protocol.similarity_weight
    weight = calibration.similarity_weight if weight is None else weight
    embedded = runtime.encode_texts(gallery.captions)
    images, texts = encoded.embeddings, embedded.embeddings
    base = rank_by(stage, encoded, embedded, protocol.depth) if stage else None
    deep = rerank(gallery, images, texts, score_pairs, protocol.depth, weight, base)
    rate = score_pairs.pairs / score_pairs.seconds
    retrieval = deep.at(k=protocol.k)
    extra: dict[str, Any] = {
        "interval": gain_intervals(retrieval, gallery),
        **calibration_metrics(retrieval, calibration),
    }
    if captioner := runtime.config.captioner:
        extra["caption_score"] = captioner.score
    if stage:
        extra["first_stage"] = stage_metrics(stage, encoded, embedded)
    if labels:
        vectors = stage_vectors(stage or StageChoice(), encoded, embedded)
        extra |= _categories(retrieval, gallery, vectors, labels)
    if protocol.folds:
        folds = rerank_folds(
            gallery, images, texts, score_pairs, protocol.k, protocol.folds, weight
        )
        extra["folds"] = folds_summary(folds)
    if protocol.k_sweep:
        extra["k_sweep"] = k_sweep(deep, protocol.k_sweep, rate)
    if protocol.similarity_weights:
        extra["similarity_weights"] = weight_sweep(retrieval, protocol.similarity_weights)
    if ids:
        extra["eccv"] = eccv_metrics(retrieval, images, texts, gallery.caption_image, ids)
    return retrieval, extra


def _categories(
    retrieval: Retrieval,
    gallery: Gallery,
    vectors: tuple[np.ndarray, np.ndarray],
    labels: ImageLabels,
) -> dict[str, Any]:
    """{"categories": mean average precision of the reranked order, "base_categories": of the first
    stage's}, each {"t2i", "i2t"}."""
    texts, images = vectors
    sides = {key: getattr(retrieval, key) for key in DIRECTIONS}
    front = {key: side.reranked(side.candidates) for key, side in sides.items()}
    owner = gallery.caption_image
    return {
        "categories": category_metrics(images, texts, owner, labels.values, front),
        "base_categories": category_metrics(images, texts, owner, labels.values),
    }


def calibration_metrics(retrieval: Retrieval, calibration: Calibration) -> dict[str, Any]:
    """{"calibration": {"t2i", "i2t"}}: the reliability of scores; of a model that was tuned also
    "uncalibrated", that of plain sigmoids, and "min_score", what its least score leaves."""
    sides = {key: getattr(retrieval, key) for key in DIRECTIONS}
    out: dict[str, Any] = {
        "calibration": {
            key: direction_reliability(side, calibration) for key, side in sides.items()
        }
    }
    if calibration.is_fitted:
        out["uncalibrated"] = {key: direction_reliability(side) for key, side in sides.items()}
    if (least := calibration.least_score) is not None:
        out["min_score"] = {
            "score": least,
            "asked_precision": 100 * (calibration.wanted_precision or 0.0),
            **{key: precision_above(side, calibration, least) for key, side in sides.items()},
        }
    return out
