"""What tells one set of parameters from another."""

import hashlib

import jax
import numpy as np
from jaxtyping import PyTree


def fingerprint(params: PyTree[np.ndarray]) -> str:
    """32 hex digits of the SHA-256 over every leaf's path, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        leaf = np.asarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(np.ascontiguousarray(leaf).data.cast("B"))
    return digest.hexdigest()[:32]
