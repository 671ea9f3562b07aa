"""Choice of how thoroughly an approximate first stage searches, by its measured recall."""

import numpy as np

from edje_jax.first_stage.base import Nearest, StoredStage
from edje_jax.first_stage.codes import Codes
from edje_jax.first_stage.exact import Exact
from edje_jax.index.column import Column
from edje_jax.index.covering import Covering

QUERIES = 256
"""Rows that ask."""
DEPTH = 100
"""Neighbours that count."""
ENOUGH = 0.98
"""Recall that is asked for."""


def choose_effort(
    stage: StoredStage, covering: Covering, vectors: Column, queries: Column
) -> tuple[int, dict[str, float]]:
    """The least effort with a recall@100 of 0.98, and the recall of every effort up to it.

    `covering` is of `stage`, and `vectors` are all rows of its index. What asks is drawn from
    `queries`.
    """
    drawn = np.random.default_rng(0).choice(len(queries), min(QUERIES, len(queries)), replace=False)
    asked = np.ascontiguousarray(queries[np.sort(drawn)])
    if not len(asked):
        return stage.effort, {}
    exact = Codes.build if stage.reads == "codes" else Exact
    truth = covering.over(exact(vectors)).nearest(asked, DEPTH)
    recalls: dict[str, float] = {}
    for effort in stage.efforts:
        stage.effort = effort
        recalls[str(effort)] = round(recall(truth, covering.nearest(asked, DEPTH)), 4)
        if recalls[str(effort)] >= ENOUGH:
            break
    return stage.effort, recalls


def recall(truth: Nearest, found: Nearest) -> float:
    """Mean share of the true neighbours that were found; as near as the last true one is enough."""
    least = truth.similarities[:, -1:] - 1e-6
    good = (found.rows >= 0) & (found.similarities >= least)
    return float(np.minimum(good.sum(axis=1) / truth.rows.shape[1], 1).mean())
