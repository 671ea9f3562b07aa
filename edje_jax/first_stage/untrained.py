"""Code heads and smaller embeddings that need no training: baselines for those that are trained.

A code head is the mean of each modality's embeddings and a kernel: the signs of the projection
(x - mean) @ kernel are the code of a unit-length embedding x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

ITQ_ROUNDS = 50
"""Rounds of ITQ, as many as in its paper."""
ITQ_ROWS = 1 << 16
"""Most embeddings that ITQ is fitted to; of more, so many are drawn."""


@dataclass(frozen=True)
class CodeHeads:
    """Code heads of both modalities, which share a kernel."""

    image_mean: Float32[np.ndarray, " e"]
    text_mean: Float32[np.ndarray, " e"]
    kernel: Float32[np.ndarray, "e bits"]

    def project_images(self, x: Float32[np.ndarray, "n e"]) -> Float32[np.ndarray, "n bits"]:
        """Projections of images' embeddings."""
        return (x - self.image_mean) @ self.kernel

    def project_texts(self, x: Float32[np.ndarray, "n e"]) -> Float32[np.ndarray, "n bits"]:
        """Projections of captions' embeddings."""
        return (x - self.text_mean) @ self.kernel


Embeddings = Float32[np.ndarray, "n e"]


def sign(images: Embeddings, texts: Embeddings, bits: int, seed: int) -> CodeHeads:
    """Signs of the first dimensions themselves."""
    width = _at_least("sign", images, bits)
    return _centring(images, texts, np.eye(width, bits))


def rotation(images: Embeddings, texts: Embeddings, bits: int, seed: int) -> CodeHeads:
    """Signs after a random rotation."""
    width = _at_least("rotation", images, bits)
    return _centring(images, texts, _rotation(width, np.random.default_rng(seed))[:, :bits])


def itq(images: Embeddings, texts: Embeddings, bits: int, seed: int) -> CodeHeads:
    """Iterative quantisation (Gong and Lazebnik, CVPR 2011): signs of the principal directions,
    rotated so that projections p lie near their signs.

    The mean of |sign(p) - p|^2 over images and captions together falls in every round.
    """
    _at_least("itq", images, bits)
    rng = np.random.default_rng(seed)
    centred = np.concatenate([images - _mean(images), texts - _mean(texts)])
    centred = centred[rng.permutation(len(centred))[:ITQ_ROWS]]
    directions = principal_directions(centred, bits)
    projected = centred @ directions
    rotated = _rotation(bits, rng).astype(np.float32)
    for _ in range(ITQ_ROUNDS):
        signs = np.where(projected @ rotated > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(projected.T @ signs)
        rotated = left @ right
    return _centring(images, texts, directions @ rotated)


def random(images: Embeddings, texts: Embeddings, bits: int, seed: int) -> CodeHeads:
    """Signs of random Gaussian projections, of which there can be any number."""
    # Drawn bit by bit, so that a longer kernel begins with a shorter one.
    drawn = np.random.default_rng(seed).standard_normal((bits, images.shape[1]))
    return _centring(images, texts, drawn.T)


UNTRAINED: dict[str, Callable[[Embeddings, Embeddings, int, int], CodeHeads]] = {
    "sign": sign,
    "rotation": rotation,
    "itq": itq,
    "random": random,
}
"""Heads from embeddings of images, embeddings of captions, a number of bits, and a seed, by their
name; ValueError for more bits than they can have."""


def _at_least(name: str, images: Embeddings, bits: int) -> int:
    """Width of embeddings that is enough for so many bits."""
    width = images.shape[1]
    if bits > width:
        raise ValueError(
            f"{name} makes at most {width} bits of embeddings of width {width}, not {bits};"
            " random projections make any number"
        )
    return width


def _centring(
    images: Embeddings, texts: Embeddings, kernel: Float[np.ndarray, "e bits"]
) -> CodeHeads:
    return CodeHeads(_mean(images), _mean(texts), np.ascontiguousarray(kernel, np.float32))


def _mean(x: Embeddings) -> Float32[np.ndarray, " e"]:
    return x.mean(axis=0, dtype=np.float64).astype(np.float32)


def _rotation(width: int, rng: np.random.Generator) -> Float[np.ndarray, "w w"]:
    """Orthogonal matrix, each as likely as any other: the signs make QR decompositions unique."""
    q, r = np.linalg.qr(rng.standard_normal((width, width)))
    return q * np.sign(np.diag(r))


Quantisation = Literal["float16", "int8", "int8-pca"]
"""Forms of embeddings that take less room. int8 is symmetric, with a scale for each row; int8-pca
is int8 of fewer dimensions, which principal directions of images give."""


def principal_directions(x: Embeddings, width: int) -> Float32[np.ndarray, "e width"]:
    """Directions along which the second moment of rows is largest, the largest first.

    Rows are taken as they are: with all e directions, products of projections are those of rows.

    Raises:
        ValueError: more directions are asked for than rows have dimensions.
    """
    if width > x.shape[1]:
        raise ValueError(
            f"rows of width {x.shape[1]} have at most {x.shape[1]} directions, not {width}"
        )
    _, vectors = np.linalg.eigh(x.T @ x)
    return np.ascontiguousarray(vectors[:, ::-1][:, :width])


def quantised(
    embeddings: Embeddings,
    kind: Quantisation,
    directions: Float32[np.ndarray, "e width"] | None = None,
) -> Float32[np.ndarray, "n width"]:
    """Embeddings as a search over their quantised form sees them: rounded, and of unit length.

    `directions` are those that int8-pca keeps, the same ones for images and captions.

    Raises:
        ValueError: int8-pca was given no directions, or another kind was given some.
    """
    if (kind == "int8-pca") != (directions is not None):
        raise ValueError(f"{kind}: int8-pca needs `directions` (principal_directions), others none")
    if directions is not None:
        embeddings = embeddings @ directions
    if kind == "float16":
        rounded = embeddings.astype(np.float16).astype(np.float32)
    else:
        # The scale of a row cancels when it gets unit length.
        largest = np.abs(embeddings).max(axis=1, keepdims=True, initial=1e-30)
        rounded = np.rint(embeddings / largest * np.float32(127))
    lengths = np.linalg.norm(rounded, axis=1, keepdims=True)
    return rounded / np.maximum(lengths, np.float32(1e-30))


def bytes_per_image(kind: Literal["float32", "codes"] | Quantisation, width: int) -> int:
    """Bytes of a stored row of `width` dimensions, or bits; the scale of an int8 row is float16."""
    if kind == "codes":
        return width // 8
    return {"float32": 4 * width, "float16": 2 * width}.get(kind, width + 2)
