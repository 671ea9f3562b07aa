"""Fixed shapes: which length and which batch size a piece of work is padded to.

Every shape that reaches a jitted function is one of a few, so that the number of compiled
programs is bounded whatever the requests look like.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """Text lengths to pad to: 16, 24, 32, 48, 64, 96, 128 and so on, and the longest itself."""
    steps = (size << i for i in range(longest.bit_length()) for size in (16, 24))
    return (*(n for n in steps if n < longest), longest)


def bucket(value: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `value`.

    Raises:
        ValueError: none does.
    """
    if value > max(buckets):
        raise ValueError(f"{value} is more than the largest of {tuple(buckets)}")
    return next(b for b in buckets if b >= value)


def batches(
    rows: Int[np.ndarray, " n"], sizes: Sequence[int], filled: float = 0.5
) -> Iterator[tuple[Int[np.ndarray, " b"], int]]:
    """Cut `rows` into batches of the given sizes: (row numbers, how many of them count).

    The largest size is used while it fills, and the next smaller ones for the rest, until at least
    a share `filled` of the size that holds what is left would count: that is filled up with its
    first row. 0 is for work whose time depends on the number of batches, not on their rows.
    """
    sizes, start = sorted(sizes), 0
    while start < len(rows):
        left = len(rows) - start
        fitting = (size for size in sizes if size * filled <= left <= size)
        size = next(fitting, max((size for size in sizes if size <= left), default=sizes[0]))
        batch = rows[start : start + size]
        yield np.concatenate([batch, np.repeat(batch[:1], size - len(batch))]), len(batch)
        start += size
