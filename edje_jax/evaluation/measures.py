"""Measures of a ranking: `MEASURES` lists all that an evaluation reports.

A measure is made of one number a query, the rank of its best right answer among the whole gallery:
1 for the top place, 0 for a query without a right answer, which never counts. So queries are
counted, not right answers: an image with five captions is hit at k when *any* of them is among the
first k (the usual any-hit reading of image-to-text R@k, e.g. in ALBEF's and BLIP's evaluations).

A new measure is one more entry of the list. It then stands in `metrics.json`, on the terminal, in
`report.html`, in the log of a training, and in `edje eval --compare` with its interval:

    Measure("MRR", lambda ranks: 100 / ranks)
    Measure("MedR", lambda ranks: ranks, "median", unit="rank", higher_is_better=False)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Measure:
    """Number that tells how well the best right answers of all queries are ranked."""

    name: str
    """Key in files and label in tables."""
    of_ranks: Callable[[Int[np.ndarray, " q"]], Float[np.ndarray, " q"]]
    """Value of each query, given the ranks (from 1) of their best right answers."""
    summary: Literal["mean", "median"] = "mean"
    """Way from the values of all queries to one number."""
    unit: str = "percent"
    """Unit of the values. Figures show measures in percent alone, as they have one axis."""
    higher_is_better: bool = True

    @property
    def label(self) -> str:
        """Name, with the unit where that is not percent, the unit of every table."""
        return self.name if self.unit == "percent" else f"{self.name} ({self.unit})"

    def of(self, ranks: Int[np.ndarray, " q"]) -> float:
        """Measure of some queries; those of rank 0 do not count.

        Raises:
            ValueError: no query is left to count.
        """
        counted = ranks[ranks > 0]
        if not len(counted):
            raise ValueError(
                f"none of {len(ranks)} queries has a right answer to count; "
                "evaluate on a set with captions"
            )
        values = self.of_ranks(counted)
        return float(np.median(values) if self.summary == "median" else np.mean(values))


def recall_at(k: int) -> Measure:
    """R@k: percentage of the queries whose best right answer stands at rank k or above.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"R@{k} does not exist; k starts at 1")
    return Measure(f"R@{k}", lambda ranks: 100.0 * (ranks <= k))


MEASURES = [recall_at(1), recall_at(5), recall_at(10)]
"""Measures that every evaluation reports, in order."""


def measure_ranks(ranks: Int[np.ndarray, " q"]) -> dict[str, float]:
    """{"R@1", "R@5", "R@10"}: every measure of some queries; those of rank 0 do not count.

    Raises:
        ValueError: no query is left to count.
    """
    return {measure.name: measure.of(ranks) for measure in MEASURES}
