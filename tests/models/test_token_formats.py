"""Formats of stored tokens: sizes as computed, errors as small as the format allows."""

from typing import get_args

import jax
import ml_dtypes
import numpy as np
import pytest

from edje_jax.config.model import TokenDtype
from edje_jax.models.token_formats import FORMATS, pack, unpack

RNG = np.random.default_rng(0)
TOKENS = (RNG.normal(size=(5, 4, 16)) * RNG.lognormal(size=(5, 4, 1))).astype(np.float32)
TOKENS[1, 2] = 0.0


def test_the_command_line_takes_every_format():
    assert list(FORMATS) == list(get_args(TokenDtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_comes_back_is_within_half_a_step(dtype):
    packed = pack(TOKENS, dtype)
    back = np.asarray(jax.jit(unpack)(packed), np.float32)
    largest = np.abs(TOKENS).max(axis=-1, keepdims=True)
    # Half a step of the grid; the scale's own rounding moves its ends a little more.
    step = {"bfloat16": 2**-8, "float16": 2**-11, "int8": 0.5 / 127, "int4": 0.5 / 7}[dtype]
    assert (np.abs(back - TOKENS) <= 1.02 * step * largest + 1e-7).all()
    assert (np.abs(back - TOKENS).max() > 0) and not back[1, 2].any()
    rows = np.array([3, 0])
    np.testing.assert_array_equal(np.asarray(unpack(packed[rows]), np.float32), back[rows])


@pytest.mark.parametrize("dtype", FORMATS)
def test_columns_have_the_shapes_and_dtypes_that_the_format_states(dtype):
    packed, stated = pack(TOKENS, dtype), FORMATS[dtype].rows(4, 16)
    assert packed.columns.keys() == stated.keys() and len(packed) == len(TOKENS)
    for name, row in stated.items():
        assert packed.columns[name].shape == (5, *row.shape)
        assert packed.columns[name].dtype == row.dtype
    size = sum(column.nbytes for column in packed.columns.values())
    assert size == 5 * FORMATS[dtype].bytes_per_image(4, 16)


def test_int4_keeps_every_code_in_its_place():
    codes = np.tile(np.arange(-7, 8, dtype=np.float32), 2)[None, None, :30]
    np.testing.assert_array_equal(unpack(pack(codes, "int4")), codes)


def test_sizes_of_the_published_model():
    sizes = [form.bytes_per_image(64, 384) for form in FORMATS.values()]
    assert sizes == [49_152, 49_152, 24_704, 12_416]


def test_what_a_format_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="overflow float16"):
        pack(np.full((1, 1, 2), 1e5, np.float32), "float16")
    with pytest.raises(ValueError, match="width 3 is odd"):
        pack(np.ones((1, 1, 3), np.float32), "int4")
    assert pack(TOKENS, "bfloat16").columns["tokens"].dtype == ml_dtypes.bfloat16
