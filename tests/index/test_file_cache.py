"""Copies of remote files: checked, shared by processes, and deleted where they take too much."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edje_jax.index.file_cache import FileCache, RemoteFile
from edje_jax.index.shard_files import BadStore
from edje_jax.system.remote_folder import RemoteFolder

SIZE = 1000


@pytest.fixture
def remote(tmp_path) -> RemoteFolder:
    """Folder with six files of a thousand bytes."""
    folder = RemoteFolder(f"file://{tmp_path}/remote")
    for number in range(6):
        folder.write(name(number), content(number))
    return folder


def name(number: int) -> str:
    return f"tokens-{number:05d}.npy"


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def file(number: int, is_large: bool = True) -> RemoteFile:
    return RemoteFile(name(number), SIZE, hashlib.sha256(content(number)).hexdigest(), is_large)


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of the files that are fetched, in order."""
    names: list[str] = []
    get = RemoteFolder.get

    def noted(self, name, path):
        names.append(name)
        get(self, name, path)

    monkeypatch.setattr(RemoteFolder, "get", noted)
    return names


def held(cache: FileCache) -> set[str]:
    folders = (cache.folder / "small", cache.folder / "large")
    return {path.name.partition("-")[2] for folder in folders for path in folder.glob("*.npy")}


def test_a_file_is_fetched_once_and_is_what_was_written(remote, tmp_path, fetched):
    cache = FileCache(remote, tmp_path / "cache", 100 * SIZE)
    assert not cache.has(file(2))
    for _ in range(2):
        assert cache.use(file(2), Path.read_bytes) == content(2)
    cache.prepare([file(i) for i in range(4)])
    again = FileCache(remote, tmp_path / "cache", 100 * SIZE)
    assert again.path(file(3)).read_bytes() == content(3)
    assert fetched[0] == name(2) and sorted(fetched) == [name(i) for i in range(4)]


def test_a_file_that_was_replaced_is_fetched_anew_even_if_it_is_as_long(remote, tmp_path):
    cache = FileCache(remote, tmp_path / "cache", 100 * SIZE)
    cache.path(file(0))
    remote.write(name(0), content(9))
    new = RemoteFile(name(0), SIZE, hashlib.sha256(content(9)).hexdigest(), True)
    assert cache.use(new, Path.read_bytes) == content(9)
    assert cache.use(file(0), Path.read_bytes) == content(0)


def test_the_least_recently_used_large_files_make_room(remote, tmp_path, fetched):
    cache = FileCache(remote, tmp_path / "cache", 3 * SIZE)
    cache.path(file(5, is_large=False))
    for number in (0, 1, 0, 2):
        cache.path(file(number))
        assert len(held(cache)) <= 3
    assert held(cache) == {name(5), name(0), name(2)}
    assert cache.use(file(1), Path.read_bytes) == content(1)
    assert held(cache) == {name(5), name(1), name(2)} and fetched.count(name(1)) == 2


def test_a_limit_below_what_is_always_kept_is_told_once(remote, tmp_path, caplog):
    cache = FileCache(remote, tmp_path / "cache", SIZE)
    for _ in range(2):
        cache.prepare([file(number, is_large=False) for number in range(3)])
        assert cache.use(file(4), Path.read_bytes) == content(4)
    assert caplog.text.count("allow more") == 1 and held(cache) == {name(i) for i in (0, 1, 2, 4)}


@pytest.mark.parametrize("files", [0.5, 1, 2.5])
def test_the_limit_holds_while_many_threads_read_more_than_it_allows(remote, tmp_path, files):
    cache = FileCache(remote, tmp_path / "cache", int(files * SIZE))
    most = 0

    def read(seed: int) -> None:
        nonlocal most
        for i in range(12):
            number = (seed * (i + 1)) % 6
            assert cache.use(file(number), Path.read_bytes) == content(number)
            most = max(most, len(held(cache)))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in (1, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.path(file(0))
    assert len(held(cache)) <= max(files, 1) and not list(cache.folder.glob("*/*.tmp"))
    assert most <= max(files, 1) + len(threads), "files that are about to be opened may stay"


def test_of_two_processes_one_fetches_and_the_other_waits(remote, tmp_path, monkeypatch):
    caches = [FileCache(remote, tmp_path / "cache", 100 * SIZE) for _ in range(2)]
    get, names, both = RemoteFolder.get, [], threading.Barrier(2)

    def slow(self, name, path):
        names.append(name)
        threading.Event().wait(0.1)
        get(self, name, path)

    monkeypatch.setattr(RemoteFolder, "get", slow)
    found = []

    def read(cache: FileCache) -> None:
        both.wait()
        found.append(cache.use(file(4), Path.read_bytes))

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [content(4)] * 2 and names == [name(4)]


def test_a_damaged_download_is_fetched_once_more(remote, tmp_path, monkeypatch, caplog):
    get, tries = RemoteFolder.get, []

    def cut_short(self, name, path):
        get(self, name, path)
        tries.append(name)
        if len(tries) == 1:
            os.truncate(path, 10)

    monkeypatch.setattr(RemoteFolder, "get", cut_short)
    cache = FileCache(remote, tmp_path / "cache", 100 * SIZE)
    assert cache.use(file(1), Path.read_bytes) == content(1) and len(tries) == 2
    assert "10 bytes, written with 1000" in caplog.text


def test_a_damaged_file_is_named_with_the_remedy_and_nothing_of_it_stays(remote, tmp_path, fetched):
    cache = FileCache(remote, tmp_path / "cache", 100 * SIZE)
    remote.write(name(1), content(2))
    with pytest.raises(BadStore, match="not what was written: its checksum differs; upload that"):
        cache.path(file(1))
    assert fetched == [name(1)] * 2 and held(cache) == set()
    remote.write(name(1), content(1))
    assert cache.use(file(1), Path.read_bytes) == content(1)


def test_a_missing_file_is_named_with_the_remedy(remote, tmp_path):
    remote.delete(name(1))
    with pytest.raises(BadStore) as error:
        FileCache(remote, tmp_path / "cache", 100 * SIZE).prepare([file(0), file(1), file(2)])
    assert str(error.value).startswith(f"{remote}/{name(1)}: missing, though the manifest names it")


KILLED = """
import os, signal, sys
from pathlib import Path
from edje_jax.index.file_cache import FileCache, RemoteFile
from edje_jax.system.remote_folder import RemoteFolder

def half(self, name, path):
    path.write_bytes(b"0" * 500)
    os.kill(os.getpid(), signal.SIGKILL)

RemoteFolder.get = half
cache = FileCache(RemoteFolder(sys.argv[1]), Path(sys.argv[2]), 10**9)
cache.path(RemoteFile(sys.argv[3], int(sys.argv[4]), sys.argv[5], True))
"""


def test_a_download_that_was_killed_leaves_nothing_and_no_lock(remote, tmp_path):
    folder, wanted = tmp_path / "cache", file(3)
    arguments = [remote.url, str(folder), wanted.name, str(wanted.bytes), wanted.sha256]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert ended.returncode == -signal.SIGKILL
    assert len(list(folder.glob("large/*.tmp"))) == 1 and not list(folder.glob("large/*.npy"))
    cache = FileCache(remote, folder, 100 * SIZE)
    assert not list(folder.glob("large/*"))
    assert cache.use(wanted, Path.read_bytes) == content(3)
