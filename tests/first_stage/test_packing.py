"""Packed codes against products of -1 and 1."""

import numpy as np
import pytest

from edje_jax.first_stage import packing
from edje_jax.first_stage.packing import hamming, hamming_similarity, pack, unpack


def projections(rows: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, bits)).astype(np.float32)


def test_bits_are_the_signs_in_order():
    row = np.array([[3, -1, 0, 0.5, -0.0, -2, -3, 1e-30]], np.float32)
    assert pack(row).tolist() == [[0b10010001]] and pack(row).dtype == np.uint8
    assert unpack(pack(row)).tolist() == [[1, -1, -1, 1, -1, -1, -1, 1]]
    x = projections(20, 256)
    assert unpack(pack(x)).dtype == np.int8
    np.testing.assert_array_equal(unpack(pack(x)), np.where(x > 0, 1, -1))


def test_the_first_bytes_are_the_code_of_the_first_bits():
    x = projections(30, 2048)
    for bits in (8, 64, 128, 256, 512, 1024, 2048):
        np.testing.assert_array_equal(pack(x)[:, : bits // 8], pack(x[:, :bits]))


@pytest.mark.parametrize("bits", [8, 24, 64, 136, 2048])
def test_distances_are_those_of_products(monkeypatch, bits):
    monkeypatch.setattr(packing, "BLOCK", 16)
    queries, codes = pack(projections(7, bits)), pack(projections(50, bits, seed=1))
    products = unpack(queries).astype(np.int32) @ unpack(codes).astype(np.int32).T
    distances = hamming(queries, codes)
    assert distances.dtype == np.int32
    np.testing.assert_array_equal(distances, (bits - products) // 2)
    np.testing.assert_array_equal(
        hamming_similarity(distances, bits), (products / bits).astype(np.float32)
    )


def test_parts_of_longer_codes_are_compared_where_they_lie():
    queries, codes = pack(projections(3, 256)), pack(projections(9, 256, seed=1))
    expected = hamming(queries[:, :8].copy(), codes[:, :8].copy())
    np.testing.assert_array_equal(hamming(queries[:, :8], codes[:, :8]), expected)


def test_there_may_be_no_code_and_no_query():
    codes = pack(projections(2, 64))
    assert pack(projections(0, 64)).shape == (0, 8) and unpack(codes[:0]).shape == (0, 64)
    assert hamming(codes[:0], codes).shape == (0, 2) and hamming(codes, codes[:0]).shape == (2, 0)


def test_what_is_no_code_is_refused():
    codes = pack(projections(2, 64))
    with pytest.raises(ValueError, match=r"are float32 \[n, bits\], not float64 \[2, 64\]"):
        pack(projections(2, 64).astype(np.float64))
    with pytest.raises(ValueError, match="a multiple of 8 bits long, not 63"):
        pack(projections(2, 63))
    with pytest.raises(ValueError, match=r"uint8 \[n, bits / 8\], not int8 \[2, 64\]"):
        unpack(unpack(codes))
    with pytest.raises(ValueError, match=r"uint8 \[n, bits / 8\], not uint8 \[8\]"):
        hamming(codes[0], codes)
    with pytest.raises(ValueError, match="codes of 64 bits are compared with 32 bits"):
        hamming(codes[:, :4], codes)
