"""Fixed shapes: what any amount of work is padded to."""

import numpy as np
import pytest

from edje_jax.data.buckets import batches, bucket, lengths_up_to


@pytest.mark.parametrize("longest", [1, 16, 17, 36, 48, 63, 200])
def test_lengths_end_at_the_longest(longest):
    lengths = lengths_up_to(longest)
    assert lengths[-1] == longest and (len(lengths) <= 5 or longest > 64)
    assert list(lengths) == sorted(set(lengths))


def test_published_and_longer_captions_have_fixed_lengths():
    assert lengths_up_to(63) == (16, 24, 32, 48, 63)
    assert lengths_up_to(200) == (16, 24, 32, 48, 64, 96, 128, 192, 200)
    assert lengths_up_to(512) == (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def test_a_bucket_is_the_smallest_that_holds():
    assert [bucket(n, (1, 8, 32)) for n in (0, 1, 2, 8, 9, 32)] == [1, 1, 8, 8, 32, 32]


@pytest.mark.parametrize("filled", [0, 0.5, 1])
@pytest.mark.parametrize("sizes", [(1, 8, 32), (32, 1, 8), (4,), (16, 128)])
def test_batches_hold_every_row_once_in_order_in_few_shapes(sizes, filled):
    for count in range(0, 3 * max(sizes) + 2):
        rows = np.random.default_rng(count).permutation(1000)[:count]
        seen = []
        for chunk, real in batches(rows, sizes, filled):
            assert len(chunk) in sizes and 0 < real <= len(chunk)
            assert real >= filled * len(chunk) or len(chunk) == min(sizes)
            # Padding repeats a row that is in the batch anyway: it reads nothing else.
            assert (chunk[real:] == chunk[0]).all()
            seen += chunk[:real].tolist()
        assert seen == rows.tolist()


@pytest.mark.parametrize(
    ("count", "filled", "expected"),
    [
        (65, 0.5, [32, 32, 1]),
        (75, 0.5, [32, 32, 8, 1, 1, 1]),
        (76, 0.5, [32, 32, 8, 8]),
        (48, 0.5, [32, 32]),
        (75, 0, [32, 32, 32]),
        (2, 0, [8]),
        (2, 0.5, [1, 1]),
    ],
)
def test_a_batch_is_at_least_so_full(count, filled, expected):
    assert [len(chunk) for chunk, _ in batches(np.arange(count), (1, 8, 32), filled)] == expected
