"""Formats of stored tokens: sizes as computed, errors as small as the format allows."""

import jax
import ml_dtypes
import numpy as np
import pytest

from edje_jax.models.token_formats import TOKEN_DTYPES, PackedTokens, pack, row_bytes, unpack

RNG = np.random.default_rng(0)
TOKENS = (RNG.normal(size=(5, 4, 16)) * RNG.lognormal(size=(5, 4, 1))).astype(np.float32)
TOKENS[1, 2] = 0.0


@pytest.mark.parametrize("dtype", TOKEN_DTYPES)
def test_what_comes_back_is_within_half_a_step(dtype):
    packed = pack(TOKENS, dtype)
    back = np.asarray(jax.jit(unpack)(packed), np.float32)
    largest = np.abs(TOKENS).max(axis=-1, keepdims=True)
    # Half a step of the grid; the scale's own rounding moves its ends a little more.
    step = {"bfloat16": 2**-8, "float16": 2**-11, "int8": 0.5 / 127, "int4": 0.5 / 7}[dtype]
    assert (np.abs(back - TOKENS) <= 1.02 * step * largest + 1e-7).all()
    assert (np.abs(back - TOKENS).max() > 0) and not back[1, 2].any()
    size = packed.values.nbytes + (0 if packed.scales is None else packed.scales.nbytes)
    assert size == 5 * row_bytes(dtype, 4, 16)
    rows = np.array([3, 0])
    np.testing.assert_array_equal(np.asarray(unpack(packed[rows]), np.float32), back[rows])


def test_int4_keeps_every_code_in_its_place():
    codes = np.tile(np.arange(-7, 8, dtype=np.float32), 2)[None, None, :30]
    np.testing.assert_array_equal(unpack(pack(codes, "int4")), codes)


def test_sizes_of_the_published_model():
    sizes = [row_bytes(dtype, 64, 384) for dtype in TOKEN_DTYPES]
    assert sizes == [49_152, 49_152, 24_704, 12_416]


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="overflow float16"):
        pack(np.full((1, 1, 2), 1e5, np.float32), "float16")
    with pytest.raises(ValueError, match="width 3 is odd"):
        pack(np.ones((1, 1, 3), np.float32), "int4")
    assert pack(TOKENS, "bfloat16").values.dtype == ml_dtypes.bfloat16
    assert len(PackedTokens(TOKENS)) == 5
