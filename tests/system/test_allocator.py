"""Settings of the system's allocator that a program makes before it begins."""

import os
import subprocess
import sys

import pytest

SHOW = """
import os
from edje_jax.system.allocator import start_with_huge_pages
start_with_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"))
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")


def started(tunables: str | None) -> tuple[bool, str]:
    """(whether the process kept its number, the tunables it ended with), told once."""
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", SHOW]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    number, value = out.split()
    return int(number) == process.pid, value


def test_a_program_starts_anew_with_huge_pages():
    assert started(None) == (True, "glibc.malloc.hugetlb=1")


def test_other_tunables_stay():
    both = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert started("glibc.malloc.arena_max=2") == (True, both)


@pytest.mark.parametrize("decided", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_what_was_decided_stays(decided):
    assert started(decided) == (True, decided)
