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


MILVUS = "milvus:"
"""Beginning of the name of a first stage that is kept in Milvus, before its address."""


def check_first_stage(name: str) -> str:
    """Name of a first stage, once it is known that there is one of it.

    Raises:
        ValueError: there is none.
    """
    if not name.startswith(MILVUS) and name not in FIRST_STAGES:
        listed = ", ".join([*FIRST_STAGES, f"{MILVUS}URI"])
        raise ValueError(f"no first stage called {name!r}; there are {listed}")
    return name


def find_first_stage(name: str) -> "type[FirstStage]":
    """Class of a first stage.

    Raises:
        ValueError: there is none of that name.
    """
    check_first_stage(name)
    module, _, kind = FIRST_STAGES[name].rpartition(".")
    return getattr(import_module(module), kind)
