"""Second model of an evaluation, which reads the same images and scores the best of an order."""

from dataclasses import dataclass

import numpy as np

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluate.gallery import EncodedGallery, Progress, encode_gallery, pair_scorer
from edje_jax.evaluate.measure import Measurement
from edje_jax.evaluation.retrieval import ScorePairs
from edje_jax.evaluation.scores import add_cosines, calibrated_logits, cosines
from edje_jax.evaluation.second_ranking import SecondRanking, rank_again
from edje_jax.runtimes.base import Runtime
from edje_jax.types import Source


@dataclass(frozen=True)
class SecondModel:
    """Model that reranks the best candidates of another one's order."""

    runtime: Runtime
    calibration: Calibration = UNTUNED
    k: int = 20
    """Candidates of each query that it scores."""

    def rank(
        self,
        source: Source,
        first: Measurement,
        *,
        max_bad: float = 0.01,
        progress: Progress | None = None,
    ) -> SecondRanking:
        """Encode the source that a first model was measured on, and score the best candidates.

        Raises:
            TooManyBadRecords: more than `max_bad` of the records are bad.
            ValueError: this model could read other images than the first one.
        """
        own, theirs = encode_gallery(self.runtime, source, max_bad, progress), first.encoded
        if own.record != theirs.record:
            raise ValueError(
                f"the second model could read {len(own.record):,} of the images and the first"
                f" {len(theirs.record):,}; take the images out that only one of them reads"
            )
        score_pairs = calibrated_scorer(self.runtime, own, self.calibration, progress)
        return rank_again(own.gallery, first.retrieval, first.calibration, score_pairs, self.k)


def calibrated_scorer(
    runtime: Runtime,
    encoded: EncodedGallery,
    calibration: Calibration,
    progress: Progress | None = None,
) -> ScorePairs:
    """Calibrated logits, with the first stage's cosine mixed in as the model was tuned, as a
    function of (caption, image) numbers of the gallery."""
    score_pairs, weight = pair_scorer(runtime, encoded, progress), calibration.similarity_weight
    texts = runtime.embed_texts(encoded.gallery.captions) if weight else None

    def score(text_index: np.ndarray, image_index: np.ndarray) -> np.ndarray:
        logits = score_pairs(text_index, image_index)
        if texts is not None:
            known = cosines(texts, encoded.embeddings, text_index, image_index)
            logits = add_cosines(logits, known, weight)
        return calibrated_logits(logits, calibration)

    return score
