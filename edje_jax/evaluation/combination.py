"""Logits of queries of several parts: a text, texts that must not match, an image to resemble.

Parts are joined as logits of calibrated scores. The formulas, with what they assume, are in
docs/guide/search.md#queries-of-several-parts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

SEPARATION = 3.0
"""Standard deviations by which cosines of images that resemble each other lie above others, unless
that is more than 1."""
LEAST_SPREAD = 0.01
"""Least standard deviation of cosines: a gallery of copies has none of its own."""
FEWEST, MOST = 8, 256
"""Least and largest number of images from which the cosines of a gallery are estimated."""


def match_both(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Logit of the product of two probabilities, of which the logits are given.

    With p = sigmoid(a) and q = sigmoid(b), logit(p q) = -log(e^-a + e^-b + e^(-a - b)), at most the
    smaller of a and b.
    """
    return -np.logaddexp(np.logaddexp(-a, -b), -a - b)


def match_and_not(
    logits: Float[np.ndarray, " n"], negative: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Logits that an image matches a query and does not match a negative text, float64 [n].

    p (1 - q), the events taken as independent, where q = sigmoid(negative - b) and b is the median
    of `negative` over the n candidates, or 0 if that is smaller. Match logits of a text that tells
    a part of an image are low even where it is true, so that 1 - sigmoid(negative) would be 1 for
    every candidate. Moving log odds by b is the correction of a classifier for other priors
    (Saerens, Latinne and Decaestecker, Neural Computation 2002), here for even odds at the median.
    """
    usual = min(0.0, float(np.median(negative))) if len(negative) else 0.0
    return match_both(logits.astype(np.float64), usual - negative.astype(np.float64))


def pool_logits(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], weight: float
) -> Float[np.ndarray, " n"]:
    """Logarithmic opinion pool of two judgements: (1 - weight) first + weight second."""
    return (1 - weight) * first + weight * second


@dataclass(frozen=True)
class Background:
    """Cosines of the embeddings of images that have nothing to do with each other."""

    mean: float
    spread: float
    """Standard deviation."""

    @classmethod
    def of(cls, embeddings: Any) -> "Background":
        """Background of a gallery's unit-length embeddings, an array [n, e] or a column of them,
        from 256 rows at even distances; of fewer than 8, that of directions that are spread evenly:
        mean 0 and variance 1 / e."""
        count, width = embeddings.shape
        if count < FEWEST:
            return cls(0.0, width**-0.5)
        drawn = embeddings[np.linspace(0, count - 1, min(count, MOST)).astype(np.int64)]
        cosines = (drawn @ drawn.T)[np.triu_indices(len(drawn), 1)]
        return cls(float(cosines.mean()), max(float(cosines.std()), LEAST_SPREAD))

    def logits(self, cosines: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Logits that images resemble each other, from their cosines, float64.

        d (t - d / 2) with t = (cosine - mean) / spread: the log odds of two normal distributions of
        that spread, d standard deviations apart, at even prior odds. d is 3, or that of a cosine of
        1 if this is less.
        """
        t = (cosines.astype(np.float64) - self.mean) / self.spread
        apart = min(SEPARATION, (1 - self.mean) / self.spread)
        return apart * (t - apart / 2)
