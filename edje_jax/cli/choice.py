"""A way to rerank: a model, a token dtype and a depth, with what they give and cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edje_jax.config.model import OnlineVision, TokenDtype
from edje_jax.evaluation.metrics import pareto_front

TIE = 0.05
"""The Pareto front tells times apart in steps of this share: another run may swap nearer ones."""


@dataclass(frozen=True)
class Choice:
    """A way to rerank, and what it gives and costs."""

    model: str
    deferred_layers: int
    online_vision: OnlineVision
    token_dtype: TokenDtype
    k: int
    t2i: float
    """R@1 in percent, as `i2t`."""
    i2t: float
    bytes_per_picture: int
    pairs_per_second: float = 0.0
    """The median of several timings of queries with k candidates each, on this machine."""
    slowest_pairs_per_second: float = 0.0
    fastest_pairs_per_second: float = 0.0

    @property
    def recall(self) -> float:
        """The mean of both directions' R@1."""
        return (self.t2i + self.i2t) / 2

    @property
    def queries_per_second(self) -> float:
        """Reranking alone."""
        return self.pairs_per_second / self.k


def front_of(choices: Sequence[Choice]) -> list[bool]:
    """Which of them no other one beats in recall, queries per second and bytes together."""
    values = [
        (c.recall, round(math.log(c.queries_per_second) / TIE), -c.bytes_per_picture)
        for c in choices
    ]
    return pareto_front(values).tolist()


def layers(choice: Choice) -> str:
    """Deferred layers of a choice, marked if the others leave vision rows unchanged."""
    attended = choice.online_vision == "attended"
    return f"{choice.deferred_layers} attended" if attended else str(choice.deferred_layers)


def short_names(models: Sequence[str]) -> dict[str, str]:
    """A workdir's own name, of its path or its model folder's; all of it where two have one, or
    where there is none."""
    models = list(dict.fromkeys(models))
    names = [_last(model) for model in models]
    return {
        model: name if names.count(name) == 1 else model
        for model, name in zip(models, names, strict=True)
    }


def _last(model: str) -> str:
    *_, above, name = ("", "", *Path(model).parts)
    return (above if name == "model" and above else name) or model
