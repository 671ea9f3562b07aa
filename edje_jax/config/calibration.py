"""Settings that `edje tune` fits to a trained model: how its match logits become scores."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Calibration:
    """Weight of the first stage, and temperature and bias of the match logits.

    A pair's score is

        sigmoid((logit + similarity_weight * cosine) / temperature + bias)

    (Platt scaling; with bias 0 the temperature scaling of Guo et al., arXiv 1706.04599). The
    defaults are those of a model that was never tuned: its scores order candidates and are no
    probabilities.
    """

    similarity_weight: float = 0.0
    """Weight of the first stage's cosine beside the match logit."""
    temperature: float = 1.0
    bias: float = 0.0
    fitted: Mapping[str, Any] = field(default_factory=dict)
    """Record of the fit: data, depth, errors before and after; empty for a model never tuned."""

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature {self.temperature}: it must be above 0, and finite")
        if not (math.isfinite(self.bias) and math.isfinite(self.similarity_weight)):
            raise ValueError(
                f"bias {self.bias}, similarity_weight {self.similarity_weight}: they must be finite"
            )
        if (least := self.least_score) is not None and not 0 <= least <= 1:
            raise ValueError(f"min_score {least}: scores lie from 0 to 1")

    @property
    def is_fitted(self) -> bool:
        """Whether scores may be called probabilities."""
        return bool(self.fitted)

    @property
    def least_score(self) -> float | None:
        """Least score for the precision that `edje tune` was asked for; None if it was not, or
        could not be reached."""
        least = self.fitted.get("min_score")
        return None if least is None else float(least)

    @property
    def wanted_precision(self) -> float | None:
        """Share of right results that the least score was chosen for."""
        wanted = self.fitted.get("precision")
        return None if wanted is None else float(wanted)


UNTUNED = Calibration()
"""Calibration of a model that was never tuned."""
