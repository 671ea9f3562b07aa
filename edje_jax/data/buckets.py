"""Fixed shapes: which length and which batch size a piece of work is padded to.

Every shape that reaches a jitted function is one of a few, so that the number of compiled
programs is bounded whatever the requests look like.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """Text lengths to pad to: 16, 24, 32, 48 and the longest itself."""
    return (*(n for n in (16, 24, 32, 48) if n < longest), longest)


def bucket(value: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `value`.

    Raises:
        ValueError: none does.
    """
    if value > max(buckets):
        raise ValueError(f"{value} is more than the largest of {tuple(buckets)}")
    return next(b for b in buckets if b >= value)


def batches(
    rows: Int[np.ndarray, " n"], sizes: Sequence[int]
) -> Iterator[tuple[Int[np.ndarray, " b"], int]]:
    """Cut `rows` into batches of the given sizes: (row numbers, how many of them count).

    The largest size is used while it fills; the rest goes into the smallest that holds it, padded
    by repeating its first row.
    """
    for start in range(0, len(rows), max(sizes)):
        chunk = rows[start : start + max(sizes)]
        size = bucket(len(chunk), sorted(sizes))
        padding = np.full(size - len(chunk), chunk[0], chunk.dtype)
        yield np.concatenate([chunk, padding]), len(chunk)
