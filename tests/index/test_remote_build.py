"""An index that is built behind a URL is the one that is built in a folder, file by file.

Covers index/files.py.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.files import RemoteFiles
from edje_jax.index.maintain import compact, remove
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store, verify
from edje_jax.system.remote_folder import RemoteFolder
from tests.colour_runtime import CODED, CODED_STAMP, RUNTIME, STAMP, Colours

ROOT = Path(__file__).parents[2]


class Renamed(Colours):
    """Source of the images of `Colours`, one of whose captions was written anew."""

    def captions(self, index: int) -> list[str]:
        return ["blue, and red"] if index == 7 else super().captions(index)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)
    monkeypatch.setattr(building, "PART_ROWS", 2)
    monkeypatch.setattr(building, "BATCH", 2)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # No machine loses its power here


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path) -> str:
    return f"{request.param}://{tmp_path}/bucket/photos.index"


@pytest.fixture
def local(tmp_path) -> Path:
    """Index of twelve images in three shards, in a folder."""
    build(CODED, CODED_STAMP, Colours(12), "colours", tmp_path / "local")
    return tmp_path / "local"


def there(url: str) -> dict[str, bytes]:
    """Content of every file behind a URL."""
    files, root = fsspec.core.url_to_fs(url)
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def here(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def staged(files: RemoteFiles) -> list[str]:
    """Files that a build has left in the folder of the cache, beside copies and its plan."""
    return [
        path.name for path in files.folder.iterdir() if path.is_file() and path.name != "build.json"
    ]


def build_there(files: RemoteFiles, source=None, **options):
    source = source or Colours(12)
    return build(CODED, CODED_STAMP, source, "colours", files, BuildOptions(**options))


def test_it_is_the_local_one_file_by_file(url, local, tmp_path):
    files = RemoteFiles(url, tmp_path / "cache")
    report = build_there(files)
    assert report and len(report.new) == 12
    assert there(url) == here(local)
    assert staged(files) == [] and not list(files.folder.glob("large/*"))
    assert not list(verify(files))


def test_many_machines_fill_one_index(url, tmp_path):
    local = tmp_path / "thirteen"
    machines = [RemoteFiles(url, tmp_path / f"cache{i}") for i in range(3)]
    build(CODED, CODED_STAMP, Colours(13), "colours", local)
    assert build_there(machines[1], Colours(13), share=(1, 3)) is None
    with pytest.raises(BadStore, match=f"{url}: this index is unfinished; run the same"):
        Store(machines[0])
    assert build_there(machines[0], Colours(13), share=(0, 3)) is None
    assert build_there(machines[2], Colours(13), share=(2, 3))
    assert there(url) == here(local) and not any(map(staged, machines))


def test_it_follows_its_set_as_a_local_one_does(url, local, tmp_path):
    """After each step, and from a machine that has no copies yet."""
    build_there(RemoteFiles(url, tmp_path / "cache"))
    for number, change in enumerate(
        (
            lambda index: build(CODED, CODED_STAMP, Renamed(14), "colours", index),
            lambda index: remove(index, ["03", "10"]),
            lambda index: build(
                CODED, CODED_STAMP, Colours(9), "colours", index, BuildOptions(prune=True)
            ),
            lambda index: compact(index),
        )
    ):
        files = RemoteFiles(url, tmp_path / f"cache{number % 3}")
        assert change(local) == change(files)
        assert there(url) == here(local), f"step {number}"
        assert staged(files) == []


def test_a_build_that_was_killed_anywhere_goes_on(tmp_path, monkeypatch):
    """After every single file that it sends, writes, moves or deletes; then on this machine, or on
    another."""
    monkeypatch.setattr(building, "SHARD_ROWS", 3)
    build(RUNTIME, STAMP, Colours(5), "colours", tmp_path / "local")
    expected, touched = here(tmp_path / "local"), 0

    class Killed(BaseException):
        pass

    def dying(plain, at: int):
        def act(*arguments, **options):
            nonlocal touched
            plain(*arguments, **options)
            touched += 1
            if touched == at:
                raise Killed

        return act

    at = deaths = 0
    while True:
        at += 1
        url = f"memory://{tmp_path}/{at}"
        with monkeypatch.context() as patch:
            for owner, name in (
                (RemoteFolder, "put"), (RemoteFolder, "write"), (RemoteFolder, "delete"),
                (os, "replace"), (Path, "unlink"),
            ):  # fmt: skip
                patch.setattr(owner, name, dying(getattr(owner, name), at))
            touched = 0
            try:
                files = RemoteFiles(url, tmp_path / "cache")
                build(RUNTIME, STAMP, Colours(5), "colours", files)
                break
            except Killed:
                deaths += 1
        other = RemoteFiles(url, tmp_path / ("cache" if at % 2 else "other"))
        assert build(RUNTIME, STAMP, Colours(5), "colours", other)
        assert there(url) == expected, f"killed after {at} files"
        assert staged(other) == [], f"killed after {at} files"
    assert deaths > 50


def test_what_another_plan_left_in_the_cache_is_not_taken_over(url, local, tmp_path, monkeypatch):
    files = RemoteFiles(url, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(building, "keep_shard", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_there(files, Renamed(12))
    assert "shard-00000.partial.json" in staged(files)
    fsspec.core.url_to_fs(url)[0].rm(f"{url}/build.json")
    build_there(RemoteFiles(url, tmp_path / "other"), share=(1, 2))
    assert build_there(files)
    assert there(url) == here(_built_in_two(tmp_path / "two"))


def _built_in_two(folder: Path) -> Path:
    for share in ((1, 2), (0, 2)):
        build(CODED, CODED_STAMP, Colours(12), "colours", folder, BuildOptions(share=share))
    return folder


def test_a_set_that_changed_under_a_build_keeps_what_is_done(url, tmp_path):
    files = RemoteFiles(url, tmp_path / "cache")
    build_there(files, share=(1, 2))
    build(CODED, CODED_STAMP, Colours(12), "colours", tmp_path / "b", BuildOptions(share=(1, 2)))
    assert build_there(files, Colours(14))
    assert build(CODED, CODED_STAMP, Colours(14), "colours", tmp_path / "b")
    assert there(url) == here(tmp_path / "b")


def test_the_index_of_another_model_is_named_by_its_url(url, tmp_path):
    build_there(RemoteFiles(url, tmp_path / "cache"))
    other = {**STAMP, "fingerprint": "another"}
    with pytest.raises(BadStore, match=f"{url}: built with another model"):
        build(RUNTIME, other, Colours(3), "colours", RemoteFiles(url, tmp_path / "cache"))


KILLED = """
import os, signal, sys
from pathlib import Path
from edje_jax.index import build as building
from edje_jax.index.files import RemoteFiles
from edje_jax.system.remote_folder import RemoteFolder
from tests.colour_runtime import CODED, CODED_STAMP, Colours

put = RemoteFolder.put

def half(self, path, name):
    if name != "tokens-00001.npy":
        return put(self, path, name)
    Path(self.url.removeprefix("file://"), name).write_bytes(path.read_bytes()[:200])
    os.kill(os.getpid(), signal.SIGKILL)

RemoteFolder.put = half
building.SHARD_ROWS, building.PART_ROWS, building.BATCH = 5, 2, 2
files = RemoteFiles(sys.argv[1], Path(sys.argv[2]))
building.build(CODED, CODED_STAMP, Colours(12), "colours", files)
"""


@pytest.mark.parametrize("cache", ["cache", "other"])
def test_a_build_that_was_killed_while_it_sent_a_file_goes_on(local, tmp_path, cache):
    url = f"file://{tmp_path}/bucket/photos.index"
    arguments = [sys.executable, "-c", KILLED, url, str(tmp_path / "cache")]
    ended = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    assert "shard-00000.json" in there(url) and "shard-00001.json" not in there(url)
    assert len(there(url)["tokens-00001.npy"]) == 200
    assert build_there(RemoteFiles(url, tmp_path / cache))
    assert there(url) == here(local)
