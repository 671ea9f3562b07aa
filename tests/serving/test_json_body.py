"""Bodies that are JSON in any encoding, and those that are none, told where."""

import pytest

from edje_jax.serving.json_body import parse


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_encoding_of_json_is_read(encoding):
    assert parse('{"query": "ö 🙂"}'.encode(encoding)) == {"query": "ö 🙂"}


def test_half_surrogate_pairs_are_replaced_and_whole_ones_kept():
    told = parse(rb'{"a\ud800": ["\udfff", "\ud83d\ude42", "plain"], "n": [1, null, true]}')
    assert told == {"a\ufffd": ["\ufffd", "🙂", "plain"], "n": [1, None, True]}
    assert parse(b'"\xed\xa0\x80"') == "\ufffd"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            b'{\n "query": "a"\n "k": 3}',
            r"',' delimiter at line 3, column 2 \(character 17\)",
        ),
        (b"query=a", r"Expecting value at line 1, column 1 \(character 0\)"),
        (b"", "Expecting value at line 1"),
        (b'{"query": "\xff"}', "utf-8 cannot be decoded at byte 11"),
        (b"[" * 100_000, "nested too deep"),
        (b"[" * 2000 + b"]" * 2000, "nested too deep"),
        (b'{"k": ' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_what_is_no_json_is_told_where(body, told):
    with pytest.raises(ValueError, match=told):
        parse(body)
