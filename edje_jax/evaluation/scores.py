"""Scores of pairs: match logits with the first stage's cosine mixed in, calibrated."""

import numpy as np
from jaxtyping import Float, Float32, Int

from edje_jax.config.calibration import Calibration


def cosines(
    texts: Float[np.ndarray, "t e"],
    images: Float[np.ndarray, "n e"],
    text_index: Int[np.ndarray, " p"],
    image_index: Int[np.ndarray, " p"],
) -> Float[np.ndarray, " p"]:
    """Cosines of pairs in the first stage, from unit-length embeddings."""
    return np.einsum("pe,pe->p", texts[text_index], images[image_index])


def add_cosines(
    logits: Float[np.ndarray, "..."], similarities: Float[np.ndarray, "..."], weight: float
) -> Float32[np.ndarray, "..."]:
    """Match logits with the weighted cosine of the first stage added, float32.

    Fast & Slow mixes two scores in this way (our reconstruction). The weight is a constant of the
    model, so that a pair's value depends on the pair alone, and one weight serves every depth; with
    scores z-normalised over each query's candidates it does not (docs/rerank-depth.md).
    """
    logits = np.asarray(logits, np.float32)
    return logits + np.float32(weight) * similarities if weight else logits


def calibrated_logits(
    logits: Float[np.ndarray, "..."], calibration: Calibration
) -> Float[np.ndarray, "..."]:
    """Logits whose sigmoid is the score: logit / temperature + bias, in the dtype of `logits`."""
    kind = logits.dtype.type
    return logits / kind(calibration.temperature) + kind(calibration.bias)


def probability(
    logits: Float[np.ndarray, "..."], calibration: Calibration
) -> Float32[np.ndarray, "..."]:
    """Scores of match logits, from 0 to 1, float32: calibrated probabilities of a match, or plain
    sigmoids for a model that was never tuned."""
    return sigmoid(calibrated_logits(np.asarray(logits, np.float32), calibration))


def sigmoid(logits: Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]:
    """1 / (1 + exp(-x)) in float32, without overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -logits)).astype(np.float32)
