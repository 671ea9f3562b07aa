"""Settings of glibc's allocator; other C libraries have no such calls and need none."""

import contextlib
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENAS = -1, -3, -8  # malloc.h's parameters of mallopt
_GIGABYTE = 1 << 30
_HUGE_PAGES = "glibc.malloc.hugetlb"


def keep_freed_memory() -> None:
    """Do not hand freed buffers back to the system.

    On CPU, JAX frees and takes its largest buffers at every step; page faults would cost more
    than a tenth of the time.
    """
    _call("mallopt", _TRIM_THRESHOLD, _GIGABYTE)
    _call("mallopt", _MMAP_THRESHOLD, _GIGABYTE)


def start_with_huge_pages() -> None:
    """Start this program anew with huge pages for what malloc hands out, unless that was done or
    decided already.

    On CPU, XLA takes fresh memory at every step, and handing out 4 kB pages takes time; how much
    depends on the machine (docs/guide/training.md). glibc reads its tunables when a process starts,
    so the same process executes the same command once more; its number stays. What it has imported
    is imported again, so a program calls this before it does anything, and is quickest to start if
    it imports JAX late.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not sys.platform.startswith("linux") or _HUGE_PAGES in tunables or sys.gettrace():
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_HUGE_PAGES}=1".lstrip(":")
    if sys.stdout:  # None where it was closed from the start
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_one_heap() -> None:
    """Use one heap for all threads, where each would grow its own: for long work, whose memory must
    not grow. To be called before there are threads."""
    _call("mallopt", _ARENAS, 1)


def give_back_freed_memory() -> None:
    """Hand what is free now back to the system, whatever was said before."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            getattr(ctypes.CDLL(None), name)(*arguments)
