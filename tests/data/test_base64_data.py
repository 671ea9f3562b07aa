"""Base64 as tools write it, and what is none."""

import base64

import numpy as np
import pytest

from edje_jax.data.base64_data import decode, is_data_uri

RAW = np.random.default_rng(0).bytes(1000)
"""Bytes whose base64 holds every letter and is padded."""
B64 = base64.b64encode(RAW).decode()
URI = f"data:image/png;base64,{B64}"
PERCENT = B64.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")


@pytest.mark.parametrize(
    "data",
    [
        base64.encodebytes(RAW).decode(),
        base64.encodebytes(RAW).decode().replace("\n", "\r\n"),
        B64.rstrip("="),
        base64.urlsafe_b64encode(RAW).decode(),
        base64.urlsafe_b64encode(RAW).decode().rstrip("="),
        B64 + "\n",
        PERCENT,
        f"data:image/png;base64, {B64}",
        f" \n{URI}",
        f"DATA:image/PNG;BASE64,{B64}",
        f"data:image/png;charset=utf-8;base64,{B64}",
        f"data:image/png; base64 ,{B64}",
        f"data:;base64,{B64}",
        f"data:image/png;base64,{PERCENT}",
    ],
)
def test_base64_is_read_as_tools_write_it(data):
    assert set("+/=") <= set(B64)
    assert decode(data) == RAW


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("", ""), ("a", "not base64"), ("é", "not base64"), ("!!!!", "not base64"),
        ("data:image/png,abc", "has to read data:image"), ("data:", "has to read data:image"),
        (" HTTPS://example.org/a.png", "not fetched"), ("file:///etc/passwd", "not fetched"),
    ],
)  # fmt: skip
def test_what_is_no_base64_says_so(data, told):
    if not told:
        assert decode(data) == b""
        return
    with pytest.raises(ValueError, match=told):
        decode(data)


def test_a_data_uri_is_told_from_other_text():
    assert is_data_uri(URI) and is_data_uri("DATA:,") and not is_data_uri(B64)
