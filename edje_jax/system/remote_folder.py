"""A folder of an object store, or of any other file system that fsspec knows, by its URL.

    folder = RemoteFolder("s3://bucket/photos.index")

Credentials and endpoints are those of the file system's library (for s3 those of the AWS tools, for
gs those of gcloud), or what fsspec's own configuration says.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from edje_jax.system.files import atomic_path, errors_name, first_line

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 16
"""Files that are fetched or sent at once."""
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs",
    "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "hdfs": "pyarrow", "sftp": "paramiko",
}  # fmt: skip
"""Packages that fsspec needs for a file system, by the beginning of its URLs."""
_BLOCK = 8 << 20


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, and so no path of this machine."""
    return "://" in os.fspath(path)


class RemoteFolder:
    """Files of a folder by their names, which may have slashes in them.

    Every method raises an OSError that names the file if the file system refuses or cannot be
    reached, a FileNotFoundError if there is no such file.

    Raises:
        ModuleNotFoundError: the file system needs a package that is not installed.
        ValueError: no file system has URLs that begin like this one.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._files, self._root = _open(self.url)
        self._is_local = self.url.startswith(("file://", "local://"))
        """Whether it is a folder of this machine: files do not appear there at once as objects do,
        and folders have to be made."""

    def __str__(self) -> str:
        return self.url

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self._errors_name(name):
            return self._files.cat_file(self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a small file: whole, or not at all."""
        path = self._path(name)
        with self._errors_name(name):
            if self._is_local:
                with atomic_path(self._with_parent(path)) as temporary:
                    temporary.write_bytes(data)
            else:
                self._files.pipe_file(path, data)

    def get(self, name: str, path: Path) -> None:
        """Copy a file to this machine."""
        with self._errors_name(name), errors_name(path):
            self._files.get_file(self._path(name), os.fspath(path))

    def put(self, path: Path, name: str) -> None:
        """Copy a file of this machine there; while that is done, part of it may be there."""
        target = self._path(name)
        with self._errors_name(name):
            if self._is_local:
                self._with_parent(target)
            self._files.put_file(os.fspath(path), target)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        try:
            with self._errors_name(name):
                self._files.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def names(self, pattern: str = "*", folder: str = "") -> list[str]:
        """Names in the folder, or in one below it, that match a pattern such as shard-*.json."""
        path = self._path(folder)
        try:
            with self._errors_name(folder):
                self._files.invalidate_cache()  # Other machines write there too
                found = self._files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = {one.strip("/").removeprefix(f"{path.strip('/')}/") for one in found}
        return sorted(name for name in names if "/" not in name and fnmatchcase(name, pattern))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        try:
            with self._errors_name(name):
                self._files.invalidate_cache()
                return int(self._files.info(self._path(name))["size"])
        except FileNotFoundError:
            return None

    def checksum(self, name: str) -> str:
        """SHA-256 of a file, which is read for it and not kept."""
        digest = hashlib.sha256()
        with self._errors_name(name), self._files.open(self._path(name), "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _with_parent(self, path: str) -> Path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Path(path)

    @contextmanager
    def _errors_name(self, name: str) -> Iterator[None]:
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", where) from error
        except Exception as error:  # Each library of an object store has errors of its own
            if isinstance(error, OSError) and error.errno and error.filename:
                raise
            raise OSError(
                f"{where}: cannot be reached ({type(error).__name__}: {first_line(error)}); check"
                " the URL, the credentials and the network, and run the same command again"
            ) from error


def in_threads(do: Callable[[T], R], each: Iterable[T]) -> list[R]:
    """Results of a function for each, several computed at once; the first error ends them."""
    each = list(each)
    if len(each) < 2:
        return [do(one) for one in each]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return list(pool.map(do, each))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _open(url: str) -> tuple[Any, str]:
    # Late: fsspec takes a while to import.
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        files, root = url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        told = f"pip install {package}" if package else first_line(error)
        raise ModuleNotFoundError(f"{url}: needs more: {told}") from error
    except ValueError as error:
        raise ValueError(
            f"{url}: {first_line(error)}; write s3://BUCKET/PATH, gs://BUCKET/PATH or another URL"
            " that fsspec knows, or a path"
        ) from error
    return files, root.rstrip("/")
