"""Formats of stored tokens: half precision, or integers with a scale for each token.

A token x of width d becomes round(x / s), s = max|x| / 127 for int8 and max|x| / 7 for int4, of
which two share a byte: element i and element i + d/2. Zero stays zero.
"""

from typing import NamedTuple, get_args

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Float32

from edje_jax.config.model import TokenDtype as TokenDtype

TOKEN_DTYPES: tuple[TokenDtype, ...] = get_args(TokenDtype)
LARGEST = {"int8": 127, "int4": 7}


class PackedTokens(NamedTuple):
    """Tokens of n pictures as they are kept. The dtype of `values` tells the format."""

    values: np.ndarray | Array
    """bfloat16, float16 or int8 [n, m, d]; uint8 [n, m, d / 2] for int4."""
    scales: np.ndarray | Array | None = None
    """float16 [n, m] for integers."""

    def __getitem__(self, rows) -> "PackedTokens":  # type: ignore[override]
        """Some of the pictures."""
        scales = None if self.scales is None else self.scales[rows]
        return PackedTokens(self.values[rows], scales)

    def __len__(self) -> int:
        return len(self.values)


def row_bytes(dtype: TokenDtype, tokens: int, width: int) -> int:
    """Bytes of one picture's tokens."""
    per_token = {"bfloat16": 2 * width, "float16": 2 * width, "int8": width + 2}
    return tokens * per_token.get(dtype, width // 2 + 2)


def pack(tokens: Float32[np.ndarray, "n m d"], dtype: TokenDtype) -> PackedTokens:
    """Tokens in one of the formats.

    Raises:
        ValueError: float16 cannot hold them, or int4 is asked for an odd width.
    """
    if dtype == "bfloat16":
        return PackedTokens(tokens.astype(ml_dtypes.bfloat16))
    if dtype == "float16":
        largest = float(np.abs(tokens).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            raise ValueError(f"tokens as large as {largest:g} overflow float16; keep bfloat16")
        return PackedTokens(tokens.astype(np.float16))
    if dtype == "int4" and tokens.shape[-1] % 2:
        raise ValueError(f"int4 pairs elements and the width {tokens.shape[-1]} is odd; use int8")
    top = LARGEST[dtype]
    # Rounded first, so that values are divided by the scale that they will be multiplied with.
    scales = (np.abs(tokens).max(axis=-1, initial=0.0) / top).astype(np.float16)
    divisor = np.where(scales == 0, 1, scales).astype(np.float32)
    codes = np.clip(np.rint(tokens / divisor[..., None]), -top, top).astype(np.int8)
    if dtype == "int8":
        return PackedTokens(codes, scales)
    low, high = np.split((codes + 8).astype(np.uint8), 2, axis=-1)
    return PackedTokens(low | high << 4, scales)


def unpack(tokens: PackedTokens) -> Float[Array, "n m d"]:
    """Inside a jitted function: what the joint encoder reads; float32 of integers."""
    values = jnp.asarray(tokens.values)
    if tokens.scales is None:
        return values
    if values.dtype == jnp.uint8:
        codes = jnp.concatenate([values & 15, values >> 4], axis=-1).astype(jnp.int8) - jnp.int8(8)
    else:
        codes = values
    return codes.astype(jnp.float32) * tokens.scales.astype(jnp.float32)[..., None]
