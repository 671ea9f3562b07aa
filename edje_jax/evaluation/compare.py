"""Comparison of two evaluations on the same queries: measures after reranking, B less A, paired."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from edje_jax.evaluation.intervals import DRAWS, LEVEL, difference_intervals
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.retrieval import DIRECTIONS


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of an evaluation, query by query."""

    name: str
    """Folder that holds them."""
    metrics: dict[str, Any]
    """Content of metrics.json."""
    queries: dict[str, list[tuple[str, str]]]
    """Id and text of each direction's queries, in order."""
    ranks: dict[str, Int[np.ndarray, " q"]]
    """Rank of the best right answer of each query after reranking."""

    @property
    def description(self) -> str:
        """Name, data and size, for messages."""
        m = self.metrics
        return f"{self.name} ({m['data']}, {m['pictures']:,} images, {m['captions']:,} captions)"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the evaluation that a comparison repeats."""
        kept = {key: self.metrics[key] for key in ("model", "data", "k", "similarity_weight")}
        return {"folder": self.name, **kept}


def compare(a: Evaluation, b: Evaluation, seed: int = 0) -> dict[str, Any]:
    """{"a", "b", "t2i": {"a", "b", "difference", "interval"}, "i2t": {...}, "interval"}.

    "a" and "b" of a direction are the measures of each side, "difference" is B's less A's, and
    "interval" is that of `intervals.difference_intervals`.

    Raises:
        ValueError: A and B were evaluated on different galleries or queries.
    """
    _check_same(a, b)
    out: dict[str, Any] = {"a": a.settings, "b": b.settings}
    for key in DIRECTIONS:
        names = [query for query, _ in a.queries[key]]
        if key == "t2i":
            names = [name.rpartition("#")[0] for name in names]
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        image = np.array([number[name] for name in names])
        ranks = a.ranks[key], b.ranks[key]
        before, after = (measure_ranks(values) for values in ranks)
        intervals = difference_intervals(*ranks, image, seed)
        out[key] = {
            "a": before,
            "b": after,
            "difference": {name: after[name] - before[name] for name in before},
            "interval": {name: list(interval) for name, interval in intervals.items()},
        }
    return {**out, "interval": {"level": LEVEL, "draws": DRAWS, "seed": seed}}


def _check_same(a: Evaluation, b: Evaluation) -> None:
    """Raise an error unless both evaluations asked the same queries of the same gallery."""
    remedy = "evaluate both on the same SPEC, with the same --pool"
    for key in DIRECTIONS:
        if a.queries[key] != b.queries[key]:
            pairs = zip(a.queries[key], b.queries[key], strict=False)
            odd = next((f"{x} and {y}" for x, y in pairs if x != y), "one has more")
            raise ValueError(
                f"{a.description} and {b.description} asked different {key} queries "
                f"(first: {odd}); {remedy}"
            )
    if a.metrics.get("gallery") != b.metrics.get("gallery"):
        raise ValueError(
            f"{a.description} and {b.description} searched different galleries; {remedy}"
        )
