"""Loading must not hold a second copy of the weights in this process's memory."""

from pathlib import Path

import pytest

from benchmarks import load


@pytest.mark.extra
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_full_size_siglip2_loads_in_little_more_memory_than_its_parameters_take(tmp_path):
    folder = str(load.make_siglip2(tmp_path))
    assert load.SIGLIP2_B16.text.vocab_size == 256_000
    found = load.alone("edje_jax", folder)
    # The parameters themselves are anonymous memory on a CPU: less would mean nothing was loaded.
    assert 0.95 <= found["peak_over_parameters"] <= 1.3, found
