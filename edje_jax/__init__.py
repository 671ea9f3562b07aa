"""EDJE in JAX: images go in once and leave as small tokens; a query meets them in a joint encoder.

Importing this package imports neither JAX nor anything else of size: the names below are looked
up when they are first used. It sets the XLA flag that one release of jaxlib needs on CPUs to
compute rightly (`edje_jax.system.xla_flags`), so import it before JAX is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edje_jax.system.xla_flags import avoid_wrong_reductions, leave_products_to_cublas

if TYPE_CHECKING:
    from edje_jax.index.image_index import ImageIndex
    from edje_jax.search.query import Query
    from edje_jax.search.reranker import Reranker

__version__ = "0.1.0"
__all__ = ["ImageIndex", "Query", "Reranker", "__version__"]

_EXPORTS = {
    "ImageIndex": "edje_jax.index.image_index",
    "Query": "edje_jax.search.query",
    "Reranker": "edje_jax.search.reranker",
}


avoid_wrong_reductions()
leave_products_to_cublas()


def __getattr__(name: str) -> Any:
    """Import an exported name from the module that defines it (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
