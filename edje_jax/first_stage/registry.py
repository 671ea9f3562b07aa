"""First stages by the name that `--first-stage` takes."""

from collections.abc import Callable
from functools import partial

import numpy as np

from edje_jax.first_stage.base import FirstStage
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.faiss import Faiss

ENGINES: dict[str, Callable[[np.ndarray], FirstStage]] = {
    "exact": Exact,
    "faiss-flat": partial(Faiss, kind="flat"),
    "faiss-hnsw": partial(Faiss, kind="hnsw"),
    "faiss-ivf": partial(Faiss, kind="ivf"),
}
"""Name of a first stage -> its maker, from embeddings float32 [n, e]."""
