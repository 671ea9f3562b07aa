"""Atomic writing of files and folders, and reading of JSON.

A file is written under a temporary name and then renamed, so that a file that is there is whole.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError


class BadJson(ValueError):
    """A file is not the JSON object that it should be; the message names it."""


def write_json(path: Path, value: object) -> None:
    """Pretty JSON through a temporary name.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot say.
        OSError: the file cannot be written.
    """
    text = json_text(value)
    with atomic_text(path) as file:
        file.write(text)


def json_text(value: object) -> str:
    """Pretty JSON, with a line's end behind it.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot say.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file that becomes `path` when the block ends well, and leaves no trace else.

    Ids can come from file names that are not UTF-8; those bytes are written as \\udcXX.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` when the block ends well.

    Raises:
        OSError: see `errors_name`.
    """
    # Of this process alone: another may be writing the same file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with errors_name(path):
        try:
            yield temporary
            move(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder; copy it where that cannot be done, as on some mounts of buckets.

    A copied folder has its config.json last, without which it is no model folder.

    Raises:
        OSError: neither worked.
    """
    try:
        os.replace(source, target)
        return
    except OSError as error:
        if error.errno not in _NO_RENAMING:
            raise
    try:
        _copy(source, target)
    except BaseException:
        _remove(target)
        raise
    _remove(source)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
        return
    for path in sorted(source.rglob("*"), key=lambda path: path == source / "config.json"):
        copy = target / path.relative_to(source)
        (copy if path.is_dir() else copy.parent).mkdir(parents=True, exist_ok=True)
        if path.is_file():
            shutil.copyfile(path, copy)


def _remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


_NO_RENAMING = (errno.EXDEV, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)


def is_abandoned(temporary: Path) -> bool:
    """Whether no process of this machine writes to a temporary name of `atomic_path` any more."""
    writer = temporary.suffixes[-2][1:]
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):
        return False
    return False


def most_open_files() -> int:
    """How many files the system lets this process have open; 1024 where it tells no limit."""
    limit = os.sysconf("SC_OPEN_MAX") if hasattr(os, "sysconf") else 0
    return limit if limit > 0 else 1024


@contextmanager
def lock_file(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file, or a folder, that no other process holds; the system frees it with the process.

    Args:
        wait: wait for another process, or another thread, that holds it.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, "another process is writing here; wait for it", str(path)
            ) from None
        except OSError as error:  # A file system without locks, such as some of buckets
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)


_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Let errors of the system name `path`: Python's say where only if a file cannot be opened.

    Raises:
        OSError: whatever failed in the block, safetensors' failures included.
    """
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        number = int(code[1]) if code else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: no such file.
        BadJson: not JSON, or no object.
    """
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: object) -> dict[str, Any]:
    """A JSON object; `path` is where it lies, for errors.

    Raises:
        BadJson: not JSON, or no object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BadJson(f"{path}: not valid JSON ({error}); fetch or write it again") from error
    if not isinstance(value, dict):
        raise BadJson(f"{path}: expected a JSON object, got {value!r}")
    return value


def first_line(error: Exception) -> str:
    """First line of another library's error message; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only once it is complete."""
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with errors_name(target):
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        move(target, old)
        move(temporary, target)
        shutil.rmtree(old)
    else:
        move(temporary, target)
