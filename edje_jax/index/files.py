"""Files of an index, by their names: in a folder of this machine, or behind a URL.

`LocalFiles` are used where they lie. `RemoteFiles` are fetched into a cache at their first use
(`file_cache`); new ones are written in that cache's folder and then sent. A manifest or a shard's
record is sent after the files that it names, so that what is named is always there.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edje_jax.index.fetched_array import FetchedArray
from edje_jax.index.file_cache import FileCache, RemoteFile
from edje_jax.index.shard_files import (
    BadStore,
    checksum,
    file_of,
    has_file,
    kind_of,
    map_whole,
    name_of,
)
from edje_jax.index.shard_writer import clear_unfinished, unfinished
from edje_jax.models.token_formats import FORMATS
from edje_jax.system.cache_folder import cache_folder
from edje_jax.system.files import (
    atomic_path,
    json_text,
    lock_file,
    parse_json,
    read_json,
    write_json,
)
from edje_jax.system.remote_folder import RemoteFolder, in_threads, is_url

LARGE = {
    "thumbnails", "strips", *(name for format in FORMATS.values() for name in format.rows(2, 2))
}  # fmt: skip
"""Kinds of files whose copies are deleted to make room; a search reads few rows of them."""
CACHE_GIGABYTES = 100.0
STAGES = "first-stage"
Entries: TypeAlias = Mapping[str, Mapping[str, Any]]
"""{name of a file: {"bytes", "sha256"}}"""


class LocalFiles:
    """Files of an index in a folder of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        """Folder in which files are written, before they count."""

    def __str__(self) -> str:
        return str(self.folder)

    def exists(self, name: str) -> bool:
        """Whether there is a file."""
        return (self.folder / name).exists()

    def names(self, pattern: str) -> list[str]:
        """Names of the files that match a pattern such as shard-*.json, in order."""
        return sorted(path.name for path in self.folder.glob(pattern))

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object; errors as those of `system.files.read_json`."""
        return read_json(self.folder / name)

    def read_all(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """JSON objects of some files; errors as those of `system.files.read_json`."""
        return [self.read_json(name) for name in names]

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        with atomic_path(self.folder / name) as temporary:
            temporary.write_bytes(data)

    def write_json(self, name: str, value: object) -> None:
        """Write a JSON object, whole or not at all."""
        write_json(self.folder / name, value)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, those that are there; the last one when all others are deleted."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        path = self.folder / name
        return path.stat().st_size if path.exists() else None

    def checksum(self, name: str) -> str:
        """SHA-256 of a file as it is now."""
        return checksum(self.folder / name)

    def check(self, records: Iterable[dict[str, Any]]) -> None:
        """Check the sizes of the files that shards' records name.

        Raises:
            BadStore: a file is missing or of another size than it had.
        """
        for record in records:
            for name, expected in record["files"].items():
                _check_size(self.folder / name, expected["bytes"])

    def path(self, record: dict[str, Any], kind: str) -> Path:
        """Path on this machine of a shard's file of a kind.

        Raises:
            BadStore: the record names none.
        """
        return file_of(self.folder, record, kind)

    def array(
        self, record: dict[str, Any], kind: str, dtype: np.dtype, shape: tuple[int, ...]
    ) -> np.ndarray | FetchedArray:
        """A shard's column, or the bytes (uint8) of a file that is no column.

        Raises:
            BadStore: the record names none, or the file is damaged.
        """
        return map_whole(self.path(record, kind), dtype)

    def prepare(self, records: Sequence[dict[str, Any]], kinds: Iterable[str]) -> None:
        """Have files of some kinds on this machine, where shards have them."""

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Take note of the plan of a build, before anything of it is written."""

    def publish(self, names: Iterable[str]) -> None:
        """Bring files that were written in `folder` to where the index is."""

    def release(self, entries: Entries) -> None:
        """Delete those in `folder`, as far as they are elsewhere."""

    def stages(self) -> list[str]:
        """Folders of the stored first stages, by their names in the index."""
        stamps = [
            path
            for under in (STAGES, f"partitions/*/{STAGES}")
            for path in sorted(self.folder.glob(f"{under}/*/*/stamp.json"))
        ]
        return [path.parent.relative_to(self.folder).as_posix() for path in stamps]

    def fetch_stage(self, stage: str, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Have a stored first stage in `folder`, if its stamp says that it is wanted."""

    def publish_stage(self, stage: str) -> None:
        """Bring a first stage that was stored in `folder` to where the index is."""

    def delete_stage(self, stage: str) -> None:
        """Delete a stored first stage, unless a process of this machine is building it."""
        with suppress(BlockingIOError), lock_file(self.folder / stage / "lock"):
            shutil.rmtree(self.folder / stage, ignore_errors=True)


class RemoteFiles:
    """Files of an index behind a URL; the methods are those of `LocalFiles`, where they are told.

    Raises:
        BadStore: no folder can be found for the cache.
        ModuleNotFoundError, ValueError: see `RemoteFolder`.
    """

    def __init__(self, url: str, cache: Path | None = None, gigabytes: float | None = None):
        self._given = (url, cache, gigabytes)
        self._remote = RemoteFolder(url)
        self.folder = _folder_of(self._remote.url, cache)
        limit = CACHE_GIGABYTES if gigabytes is None else gigabytes
        self._cache = FileCache(self._remote, self.folder, int(limit * 1e9))

    def __reduce__(self):
        return RemoteFiles, self._given

    def __str__(self) -> str:
        return self._remote.url

    def exists(self, name: str) -> bool:
        return self.size(name) is not None

    def names(self, pattern: str) -> list[str]:
        return self._remote.names(pattern)

    def read_json(self, name: str) -> dict[str, Any]:
        return parse_json(self._remote.read(name), f"{self}/{name}")

    def read_all(self, names: Iterable[str]) -> list[dict[str, Any]]:
        return in_threads(self.read_json, names)

    def write(self, name: str, data: bytes) -> None:
        self._remote.write(name, data)

    def write_json(self, name: str, value: object) -> None:
        self._remote.write(name, json_text(value).encode("utf-8", "backslashreplace"))

    def delete(self, names: Iterable[str]) -> None:
        *first, last = (*names,) or (None,)
        in_threads(self._remote.delete, first)
        if last:
            self._remote.delete(last)

    def size(self, name: str) -> int | None:
        return self._remote.size(name)

    def checksum(self, name: str) -> str:
        return self._remote.checksum(name)

    def check(self, records: Iterable[dict[str, Any]]) -> None:
        """Every file is checked when it is fetched."""

    def path(self, record: dict[str, Any], kind: str) -> Path:
        return self._cache.path(self._file(record, kind))

    def array(
        self, record: dict[str, Any], kind: str, dtype: np.dtype, shape: tuple[int, ...]
    ) -> np.ndarray | FetchedArray:
        return FetchedArray(self._cache, self._file(record, kind), dtype, shape)

    def prepare(self, records: Sequence[dict[str, Any]], kinds: Iterable[str]) -> None:
        wanted = [
            self._file(record, kind)
            for kind in kinds
            for record in records
            if has_file(record, kind)
        ]
        self._cache.prepare(wanted)

    def begin(self, plan: Mapping[str, Any]) -> None:
        own = self.folder / "build.json"
        if not own.exists() or read_json(own) != plan:
            clear_unfinished(self.folder)
            write_json(own, plan)
        sent = {name.partition(".")[0] for name in self.names("shard-*.json")}
        begun = {f"shard-{number:05d}" for number in unfinished(self.folder)} - sent
        left: dict[str, list[Path]] = {}
        for path in self.folder.glob("*-*.*"):  # A process was killed when it had sent them
            shard = f"shard-{path.name.rpartition('-')[2].partition('.')[0]}"
            if shard not in begun and not path.name.endswith(".lock"):
                left.setdefault(shard, []).append(path)
        for shard, paths in left.items():
            lock = self.folder / f"{shard}.lock"
            with suppress(BlockingIOError), lock_file(lock):  # Another process may have begun it
                for path in (*paths, lock):
                    path.unlink(missing_ok=True)

    def publish(self, names: Iterable[str]) -> None:
        in_threads(lambda name: self._remote.put(self.folder / name, name), names)

    def release(self, entries: Entries) -> None:
        for name, entry in entries.items():
            file, path = _remote_file(name, entry), self.folder / name
            if file.is_large:
                path.unlink(missing_ok=True)
            else:
                self._cache.keep(path, file)

    def stages(self) -> list[str]:
        folders = [
            f"{STAGES}/{name}/{column}"
            for name in self._remote.names(folder=STAGES)
            for column in self._remote.names(folder=f"{STAGES}/{name}")
        ]
        # Some file systems keep folders in which nothing is left.
        return [folder for folder in folders if self._remote.names("stamp.json", folder)]

    def fetch_stage(self, stage: str, is_wanted: Callable[[dict[str, Any]], bool]) -> None:
        try:
            stamp = self.read_json(f"{stage}/stamp.json")
        except FileNotFoundError:
            return
        if not is_wanted(stamp):
            return
        folder, name = self.folder / stage, stamp["file"]["name"]
        file = _remote_file(f"{stage}/{name}", stamp["file"], is_large=False)
        folder.mkdir(parents=True, exist_ok=True)
        self._cache.fetch_to(file, folder / name)
        write_json(folder / "stamp.json", stamp)

    def publish_stage(self, stage: str) -> None:
        stamp = read_json(self.folder / stage / "stamp.json")
        name = stamp["file"]["name"]
        self._remote.put(self.folder / stage / name, f"{stage}/{name}")
        self.write_json(f"{stage}/stamp.json", stamp)
        for other in self._remote.names(folder=stage):
            if other not in (name, "stamp.json"):
                self._remote.delete(f"{stage}/{other}")

    def delete_stage(self, stage: str) -> None:
        if (self.folder / stage).exists():
            with suppress(BlockingIOError), lock_file(self.folder / stage / "lock"):
                shutil.rmtree(self.folder / stage, ignore_errors=True)
        self.delete([f"{stage}/{name}" for name in self._remote.names(folder=stage)])

    def _file(self, record: dict[str, Any], kind: str) -> RemoteFile:
        name = name_of(record, kind, self)
        return _remote_file(name, record["files"][name])


IndexFiles: TypeAlias = LocalFiles | RemoteFiles


def files_of(
    index: str | os.PathLike[str] | IndexFiles,
    cache: str | os.PathLike[str] | None = None,
    gigabytes: float | None = None,
) -> IndexFiles:
    """Files of the index in a folder or behind a URL such as s3://bucket/photos.index.

    Args:
        cache: folder for copies of remote files (default: `indexes` in the user's cache folder).
        gigabytes: room that they may take (default: `CACHE_GIGABYTES`).

    Raises:
        BadStore, ModuleNotFoundError, ValueError: see `RemoteFiles`.
    """
    if isinstance(index, LocalFiles | RemoteFiles):
        return index
    if is_url(index):
        return RemoteFiles(os.fspath(index), Path(cache).expanduser() if cache else None, gigabytes)
    return LocalFiles(Path(index).expanduser())


def _remote_file(name: str, entry: Mapping[str, Any], is_large: bool | None = None) -> RemoteFile:
    large = kind_of(name) in LARGE if is_large is None else is_large
    return RemoteFile(name, entry["bytes"], entry["sha256"], large)


def _folder_of(url: str, cache: Path | None) -> Path:
    """Folder of an index's copies in a cache."""
    cache = cache or cache_folder("indexes")
    if cache is None:
        raise BadStore(f"{url}: no folder for copies of its files; give one with --cache DIR")
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2])
    return cache / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def _check_size(path: Path, size: int) -> None:
    if not path.exists():
        raise BadStore(f"{path}: missing; build the index again")
    if path.stat().st_size != size:
        raise BadStore(
            f"{path}: {path.stat().st_size} bytes, written with {size}: truncated or overwritten;"
            " build the index again"
        )
