"""Copies on this machine of a remote folder's files, each checked when it is fetched.

    small/SHA256-NAME         kept
    large/SHA256-NAME         the least recently used are deleted where all take more than a limit
    locks/                    of fetching: of two processes one fetches, and the other waits for it

A copy is named after what is in it: one that has its name is whole, and serves for as long as the
manifest names that content. Its time of modification is that of its last use. Files are fetched
under a temporary name, so that a process that is killed leaves no half of one.
"""

import logging
import os
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from edje_jax.index.shard_files import BadStore, checksum
from edje_jax.system.files import atomic_path, is_abandoned, lock_file
from edje_jax.system.remote_folder import RemoteFolder, in_threads

log = logging.getLogger(__name__)

T = TypeVar("T")
LOCKS = 256
"""Number of locks, which files share by chance."""
TOLD = 100 << 20
"""Bytes of files together from which on the log tells of fetching them."""
TRIES = 10
"""How often a file is fetched that other processes delete before it is used."""


class RemoteFile(NamedTuple):
    """A file of a remote folder, as it should be."""

    name: str
    bytes: int
    sha256: str
    is_large: bool
    """Whether its copy may be deleted to make room."""


class FileCache:
    """Copies of a remote folder's files; many processes may share its folder.

    Args:
        limit: bytes that all copies may take; what is needed at once is kept all the same.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, limit: int):
        self.remote, self.folder, self.limit = remote, folder, limit
        for name in ("small", "large", "locks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*/*.tmp"):
            if is_abandoned(path):
                path.unlink(missing_ok=True)
        self._room = threading.Condition()
        self._coming = 0
        """Bytes of large files that are being fetched."""
        self._used: Counter[Path] = Counter()
        """Copies that are about to be opened by this process."""
        self._is_over = False
        """Whether such copies keep others from having room."""
        self._is_told = False

    def place(self, file: RemoteFile) -> Path:
        """Path that the copy of a file has, or will have."""
        return self.folder / ("large" if file.is_large else "small") / f"{file.sha256}-{file.name}"

    def has(self, file: RemoteFile) -> bool:
        """Whether there is a copy."""
        return self.place(file).exists()

    def path(self, file: RemoteFile) -> Path:
        """Path of the copy of a file, which is fetched if it is not there.

        Raises:
            BadStore: the remote folder has no such file, or what was fetched is not what should be
                there, twice.
            OSError: it cannot be fetched, or not be kept.
        """
        path = self.place(file)
        try:
            os.utime(path)
            return path
        except FileNotFoundError:
            pass
        with lock_file(self._lock(path), wait=True):
            if not path.exists():
                with self._room_for(file):
                    self._fetch(file, path)
        return path

    def use(self, file: RemoteFile, open: Callable[[Path], T]) -> T:
        """Open the copy of a file, which is fetched if it is not there, or no longer.

        Raises: as for `path`.
        """
        path = self.place(file)
        self._note(path, 1)
        try:
            for _ in range(TRIES):
                try:
                    return open(self.path(file))
                except FileNotFoundError:
                    continue
        finally:
            self._note(path, -1)
        raise BadStore(
            f"{self.folder}: other processes need the room of {file.name}"
            f" ({file.bytes / 1e9:.1f} GB); allow more with --cache-gigabytes, or give each a cache"
            " of its own with --cache"
        )

    def prepare(self, files: Collection[RemoteFile]) -> None:
        """Fetch those of some files that are not there, several at once.

        Raises: as for `path`.
        """
        missing = [file for file in files if not self.has(file)]
        if (size := sum(file.bytes for file in missing)) > TOLD:
            log.info("%s: fetching %d files, %.1f GB", self.remote, len(missing), size / 1e9)
        if missing:
            in_threads(self.path, missing)
            with self._room:
                self._make_room(self._coming)

    def fetch_to(self, file: RemoteFile, path: Path) -> None:
        """Fetch a file to a path of the caller's choice.

        Raises: as for `path`.
        """
        with lock_file(self._lock(path), wait=True):
            if not path.exists() or checksum(path) != file.sha256:
                self._fetch(file, path)

    def keep(self, path: Path, file: RemoteFile) -> None:
        """Take a file of this machine over as the copy of one that was sent there."""
        with suppress(FileNotFoundError):  # Another process has cleared it away
            os.replace(path, self.place(file))

    def _lock(self, path: Path) -> Path:
        return self.folder / "locks" / str(zlib.crc32(path.name.encode()) % LOCKS)

    def _note(self, path: Path, change: int) -> None:
        with self._room:
            self._used[path] += change
            if self._used[path]:
                return
            del self._used[path]
            if self._is_over:
                self._make_room(self._coming, kept=1)

    @contextmanager
    def _room_for(self, file: RemoteFile) -> Iterator[None]:
        """Room for a large file while it is being fetched; small ones are made room for later."""
        size = file.bytes if file.is_large else 0
        with self._room:
            if size:
                self._room.wait_for(lambda: not self._coming or self._coming + size <= self.limit)
                self._coming += size
                self._make_room(self._coming)
        try:
            yield
        finally:
            with self._room:
                self._coming -= size
                self._room.notify_all()

    def _make_room(self, size: int, kept: int = 0) -> None:
        """Delete the least recently used large copies, all but `kept` of them if need be, so that
        so many bytes have room as well."""
        large = sorted(_copies(self.folder / "large"))
        small = sum(bytes for _, bytes, _ in _copies(self.folder / "small"))
        if small > self.limit and not self._is_told:
            self._is_told = True
            log.warning(
                "%s: files that are always kept take %.1f GB of the %g GB that --cache-gigabytes"
                " allows, so that no tokens stay: allow more", self.folder, small / 1e9,
                self.limit / 1e9,
            )  # fmt: skip
        total = size + small + sum(bytes for _, bytes, _ in large)
        for _, bytes, path in large[: len(large) - kept]:
            if total > self.limit and path not in self._used:
                path.unlink(missing_ok=True)
                total -= bytes
        self._is_over = total > self.limit and bool(self._used)

    def _fetch(self, file: RemoteFile, path: Path) -> None:
        for is_last in (False, True):
            try:
                with atomic_path(path) as temporary:
                    self.remote.get(file.name, temporary)
                    _check(temporary, file, f"{self.remote}/{file.name}")
                return
            except FileNotFoundError as error:
                raise BadStore(
                    f"{self.remote}/{file.name}: missing, though the manifest names it; open the"
                    " index again if it was changed meanwhile, or else build it again"
                ) from error
            except (BadStore, OSError) as error:
                if is_last:
                    raise
                log.warning("%s: fetched once more (%s)", file.name, error)


def _check(path: Path, file: RemoteFile, where: str) -> None:
    """Compare what was fetched with what should be there.

    Raises:
        BadStore: it is something else.
    """
    if (size := path.stat().st_size) != file.bytes:
        fault = f"{size} bytes, written with {file.bytes}"
    elif checksum(path) != file.sha256:
        fault = "not what was written: its checksum differs"
    else:
        return
    raise BadStore(f"{where}: {fault}; upload that file again, or build the index again")


def _copies(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(time of its last use, bytes, path) of every copy in a folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                found = entry.stat()
            except FileNotFoundError:  # Another process has deleted it
                continue
            if not entry.name.endswith(".tmp"):
                yield found.st_mtime_ns, found.st_size, Path(entry.path)
