"""First stages by the name that `--first-stage` takes.

A further first stage is a file in this folder and a line in `FIRST_STAGES`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edje_jax.first_stage.base import FirstStage

FIRST_STAGES = {
    "exact": "edje_jax.first_stage.exact.Exact",
    "faiss-flat": "edje_jax.first_stage.faiss.FaissFlat",
    "faiss-hnsw": "edje_jax.first_stage.faiss.FaissHnsw",
    "faiss-ivf": "edje_jax.first_stage.faiss.FaissIvf",
    "codes": "edje_jax.first_stage.codes.Codes",
    "faiss-binary-flat": "edje_jax.first_stage.faiss_binary.FaissBinaryFlat",
    "faiss-binary-hnsw": "edje_jax.first_stage.faiss_binary.FaissBinaryHnsw",
    "faiss-binary-ivf": "edje_jax.first_stage.faiss_binary.FaissBinaryIvf",
}
"""Name of a first stage -> its class, which is imported once it is used: the command line lists
the names without any of the libraries behind them."""


def find_first_stage(name: str) -> "type[FirstStage]":
    """Class of a first stage.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FIRST_STAGES:
        raise ValueError(f"no first stage called {name!r}; there are {', '.join(FIRST_STAGES)}")
    module, _, kind = FIRST_STAGES[name].rpartition(".")
    return getattr(import_module(module), kind)
