"""Fixed shapes: what any amount of work is padded to."""

import numpy as np
import pytest

from edje_jax.data.buckets import batches, bucket, lengths_up_to


@pytest.mark.parametrize("longest", [1, 16, 17, 36, 48, 63, 200])
def test_lengths_end_at_the_longest(longest):
    lengths = lengths_up_to(longest)
    assert lengths[-1] == longest and len(lengths) <= 5
    assert list(lengths) == sorted(set(lengths))


def test_a_bucket_is_the_smallest_that_holds():
    assert [bucket(n, (1, 8, 32)) for n in (0, 1, 2, 8, 9, 32)] == [1, 1, 8, 8, 32, 32]


@pytest.mark.parametrize("sizes", [(1, 8, 32), (32, 1, 8), (4,), (16, 128)])
def test_batches_hold_every_row_once_in_order_in_few_shapes(sizes):
    for count in range(0, 3 * max(sizes) + 2):
        rows = np.random.default_rng(count).permutation(1000)[:count]
        seen = []
        for chunk, real in batches(rows, sizes):
            assert len(chunk) in sizes and 0 < real <= len(chunk)
            smaller = [size for size in sizes if size < len(chunk)]
            assert all(real > size for size in smaller)
            # Padding repeats a row that is in the batch anyway: it reads nothing else.
            assert (chunk[real:] == chunk[0]).all()
            seen += chunk[:real].tolist()
        assert seen == rows.tolist()


def test_full_batches_come_first():
    sizes = [len(chunk) for chunk, _ in batches(np.arange(75), (1, 8, 32))]
    assert sizes == [32, 32, 32]
    sizes = [len(chunk) for chunk, _ in batches(np.arange(65), (1, 8, 32))]
    assert sizes == [32, 32, 1]
