"""Processors: how many cores there are, and whether they multiply small integers fast."""

import os

import pytest

from edje_jax.system.processors import has_vnni, usable_cores


def test_only_cores_that_this_process_may_use_count(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_vnni avx512_bitalg", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu avx2 avx512f", False),
    ],
)
def test_instructions_for_small_integers_are_read_from_the_system(flags, expected, tmp_path):
    described = tmp_path / "cpuinfo"
    described.write_text(f"processor\t: 0\nmodel name\t: One with _vnni\nflags\t\t: {flags}\n")
    assert has_vnni(described) is expected
    assert not has_vnni(tmp_path / "none")
