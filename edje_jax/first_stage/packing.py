"""Binary codes packed into bytes, and their Hamming distances.

A bit is 1 where the projection is above 0. Bits lie as `numpy.packbits` lays them, the first one
highest, so that the first b bits of a longer code are its first b / 8 bytes.
"""

import numpy as np
from jaxtyping import Float32, Int8, Int32, Shaped, UInt8, UInt64

BLOCK = 1 << 14
"""Codes compared with a query at once: they and their distances stay in the processor's cache."""


def pack(projections: Float32[np.ndarray, "n bits"]) -> UInt8[np.ndarray, "n bytes"]:
    """Signs of projections, eight to a byte.

    Raises:
        ValueError: they are not float32 [n, bits], or no whole number of bytes.
    """
    if projections.dtype != np.float32 or projections.ndim != 2:
        found = f"{projections.dtype} {list(projections.shape)}"
        raise ValueError(f"projections to pack are float32 [n, bits], not {found}")
    if projections.shape[1] % 8:
        raise ValueError(f"codes are a multiple of 8 bits long, not {projections.shape[1]}")
    return np.packbits(projections > 0, axis=1)


def unpack(codes: UInt8[np.ndarray, "n bytes"]) -> Int8[np.ndarray, "n bits"]:
    """Packed codes as -1 and 1.

    Raises:
        ValueError: they are not packed codes.
    """
    check_codes(codes)
    return np.unpackbits(codes, axis=1).astype(np.int8) * np.int8(2) - np.int8(1)


def hamming(
    queries: UInt8[np.ndarray, "q bytes"], codes: UInt8[np.ndarray, "n bytes"]
) -> Int32[np.ndarray, "q n"]:
    """Numbers of bits in which each query differs from each code.

    Raises:
        ValueError: they are not packed codes of the same length.
    """
    check_codes(codes)
    check_codes(queries, codes.shape[1])
    asked, words = _words(queries), _words(codes)
    distances = np.zeros((len(queries), len(codes)), np.int32)
    for start in range(0, len(codes), BLOCK):
        columns = np.ascontiguousarray(words[start : start + BLOCK].T)
        for query, counts in zip(asked, distances[:, start : start + BLOCK], strict=True):
            for word, column in zip(query, columns, strict=True):
                counts += np.bitwise_count(column ^ word)
    return distances


def hamming_similarity(
    distances: Int32[np.ndarray, "q k"], bits: int
) -> Float32[np.ndarray, "q k"]:
    """Cosine of codes as -1 and 1, from their Hamming distance: from 1 if equal to -1."""
    return ((bits - 2 * distances.astype(np.int64)) / bits).astype(np.float32)


def check_codes(codes: Shaped[np.ndarray, "..."], width: int | None = None) -> None:
    """Check packed codes, given a width for that many bytes a code.

    Raises:
        ValueError: they are of another dtype, shape or length; the message says of which.
    """
    if codes.dtype != np.uint8 or codes.ndim != 2:
        found = f"{codes.dtype} {list(codes.shape)}"
        raise ValueError(f"codes are uint8 [n, bits / 8], not {found}; `pack` makes them")
    if width is not None and codes.shape[1] != width:
        raise ValueError(f"codes of {8 * width} bits are compared with {8 * codes.shape[1]} bits")


def _words(codes: UInt8[np.ndarray, "n bytes"]) -> UInt64[np.ndarray, "n words"]:
    """Codes as whole words, filled up with zeros."""
    return fill(codes, 8).view(np.uint64)


def fill(codes: UInt8[np.ndarray, "n bytes"], size: int) -> UInt8[np.ndarray, "n filled"]:
    """Codes filled up with zero bytes to a multiple of `size` bytes; distances stay."""
    missing = -codes.shape[1] % size
    return np.ascontiguousarray(np.pad(codes, ((0, 0), (0, missing))) if missing else codes)
