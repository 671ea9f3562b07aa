"""Formats of stored tokens: half precision, or integers with a scale for each token.

A further format is an entry of `FORMATS`, and a name in `config.model.TokenDtype`, which the
command line takes.

A token x of width d becomes round(x / s), s = max|x| / 127 for int8 and max|x| / 7 for int4, of
which two share a byte: element i and element i + d/2. Zero stays zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Float32, Int8

Columns = dict[str, Any]
"""Arrays [n, ...] of NumPy or JAX, by the name under which an index stores them."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedTokens:
    """Compressed tokens of n images as they are stored."""

    format: str = field(metadata={"static": True})
    """Name in `FORMATS`; part of a compiled program."""
    columns: Columns

    def __getitem__(self, rows) -> "PackedTokens":
        """Tokens of some of the images."""
        return PackedTokens(self.format, {name: x[rows] for name, x in self.columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@dataclass(frozen=True)
class TokenFormat:
    """A way to store compressed tokens in columns that have a row for each image."""

    rows: Callable[[int, int], dict[str, jax.ShapeDtypeStruct]]
    """(tokens m, width d) of an image -> shape and dtype of its row in each column."""
    pack: Callable[[Float32[np.ndarray, "n m d"]], Columns]
    """Columns of the tokens of n images; ValueError for tokens that the format cannot hold."""
    unpack: Callable[[Columns], Float[Array | np.ndarray, "n m d"]]
    """Tokens that the joint encoder reads; called inside jitted functions, and with NumPy's arrays,
    of which it makes others of NumPy."""

    def bytes_per_image(self, tokens: int, width: int) -> int:
        """Bytes of the tokens of an image."""
        return sum(row.size * row.dtype.itemsize for row in self.rows(tokens, width).values())


def pack(tokens: Float32[np.ndarray, "n m d"], dtype: str) -> PackedTokens:
    """Tokens in the format called `dtype`.

    Raises:
        ValueError: the format cannot hold them: too large for float16, of odd width for int4.
    """
    return PackedTokens(dtype, FORMATS[dtype].pack(tokens))


def unpack(tokens: PackedTokens) -> Float[Array | np.ndarray, "n m d"]:
    """Tokens that the joint encoder reads; float32 of integers. Columns of NumPy give an array of
    NumPy, those of JAX one of JAX, also inside jitted functions."""
    return FORMATS[tokens.format].unpack(tokens.columns)


def _pack_float16(tokens: Float32[np.ndarray, "n m d"]) -> Columns:
    largest = float(np.abs(tokens).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"tokens as large as {largest:g} overflow float16; keep bfloat16")
    return {"tokens": tokens.astype(np.float16)}


def _pack_int8(tokens: Float32[np.ndarray, "n m d"], largest: int = 127) -> Columns:
    # Rounded first, so that values are divided by the scale that they will be multiplied with.
    scales = (np.abs(tokens).max(axis=-1, initial=0.0) / largest).astype(np.float16)
    divisor = np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.clip(np.rint(tokens / divisor[..., None]), -largest, largest)
    return {"tokens": codes.astype(np.int8), "scales": scales}


def _pack_int4(tokens: Float32[np.ndarray, "n m d"]) -> Columns:
    if tokens.shape[-1] % 2:
        raise ValueError(f"int4 pairs elements and the width {tokens.shape[-1]} is odd; use int8")
    columns = _pack_int8(tokens, 7)
    low, high = np.split((columns["tokens"] + 8).astype(np.uint8), 2, axis=-1)
    return columns | {"tokens": low | high << 4}


def _unpack_int4(columns: Columns) -> Float32[Array | np.ndarray, "n m d"]:
    pairs = columns["tokens"]
    concatenate = jnp.concatenate if isinstance(pairs, jax.Array) else np.concatenate
    codes = concatenate([pairs & 15, pairs >> 4], axis=-1).astype(np.int8) - np.int8(8)
    return _scaled(codes, columns)


def _scaled(
    codes: Int8[Array | np.ndarray, "n m d"], columns: Columns
) -> Float32[Array | np.ndarray, "n m d"]:
    return codes.astype(np.float32) * columns["scales"].astype(np.float32)[..., None]


_row = jax.ShapeDtypeStruct

FORMATS: dict[str, TokenFormat] = {
    "bfloat16": TokenFormat(
        rows=lambda m, d: {"tokens": _row((m, d), ml_dtypes.bfloat16)},
        pack=lambda tokens: {"tokens": tokens.astype(ml_dtypes.bfloat16)},
        unpack=lambda columns: columns["tokens"],
    ),
    "float16": TokenFormat(
        rows=lambda m, d: {"tokens": _row((m, d), np.float16)},
        pack=_pack_float16,
        unpack=lambda columns: columns["tokens"],
    ),
    "int8": TokenFormat(
        rows=lambda m, d: {"tokens": _row((m, d), np.int8), "scales": _row((m,), np.float16)},
        pack=_pack_int8,
        unpack=lambda columns: _scaled(columns["tokens"], columns),
    ),
    "int4": TokenFormat(
        rows=lambda m, d: {"tokens": _row((m, d // 2), np.uint8), "scales": _row((m,), np.float16)},
        pack=_pack_int4,
        unpack=_unpack_int4,
    ),
}
"""Formats by the name that `--token-dtype` takes."""
