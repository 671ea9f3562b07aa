"""Files mapped into memory and closed: an index may have more files than a process may open.

Python's own `mmap` keeps a descriptor of each file (before Python 3.13). A mapping needs none, and
the content of a deleted file stays readable until its array is freed.
"""

import ctypes
import io
import mmap
import os
import threading
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

_FAILED = ctypes.c_void_p(-1).value
_HEADER = 4096
"""Upper limit of the header of a .npy file, in bytes."""
_PARSING = threading.Lock()
"""Held while NumPy parses a header: Python 3.11's `ast` counts the depth of all threads as one, and
two that parse at once may end in "SystemError: AST constructor recursion depth mismatch"
(https://github.com/python/cpython/issues/106905)."""


def map_bytes(path: Path) -> UInt8[np.ndarray, " bytes"]:
    """A file's bytes, read-only.

    Raises:
        OSError: the file cannot be opened or mapped.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:  # An empty file cannot be mapped
            return np.empty(0, np.uint8)
        address = _libc().mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    memory = (ctypes.c_ubyte * size).from_address(address)
    # Unmapped with the last array that uses it, or by the system when the process ends.
    weakref.finalize(memory, _libc().munmap, address, size).atexit = False
    array = np.ctypeslib.as_array(memory)
    array.flags.writeable = False
    return array


def map_array(path: Path) -> np.ndarray:
    """The array in a .npy file, read-only.

    Raises:
        ValueError: the file is no .npy file, holds Python objects, or is truncated.
        OSError: see `map_bytes`.
    """
    data = map_bytes(path)
    header = io.BytesIO(data[:_HEADER].tobytes())
    if (version := np.lib.format.read_magic(header)) != (1, 0):
        raise ValueError(f"version {version} of .npy")
    with _PARSING:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.hasobject or is_fortran:
        raise ValueError(f"not written by an index: {dtype}, Fortran order: {is_fortran}")
    size = int(np.prod(shape)) * dtype.itemsize
    return data[header.tell() : header.tell() + size].view(dtype).reshape(shape)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    size, number = ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, size, number, number, number, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, size)
    return libc
