"""An index behind a URL answers as the same one in a folder does, and fetches what it needs.

Covers index/files.py, index/fetched_array.py and index/stage_upkeep.py.
"""

import errno
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.index import build as building
from edje_jax.index import files as files_module
from edje_jax.index import first_stages
from edje_jax.index.build import build
from edje_jax.index.covering import Covering
from edje_jax.index.files import LocalFiles, RemoteFiles, files_of
from edje_jax.index.first_stages import extend_first_stage, publish_first_stage
from edje_jax.index.maintain import compact, remove
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store, verify
from edje_jax.system.remote_folder import RemoteFolder
from tests.colour_runtime import CODED, CODED_STAMP, Colours

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "goldens" / "old_index"
LOOKUPS = ("row_starts", "caption_starts", "id_hashes", "id_rows")
TEXTS = ["red", "green and blue"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # No machine loses its power here


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Index of twelve images in three shards, one of them removed; to be read only."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", 5)
        build(CODED, CODED_STAMP, Colours(12), "colours", folder)
    remove(folder, ["06"])
    return folder


@pytest.fixture(params=["memory", "file"])
def url(request, local, tmp_path) -> str:
    """Index behind a URL that equals a local one."""
    return uploaded(local, f"{request.param}://{tmp_path}/bucket/photos.index")


def uploaded(folder: Path, url: str) -> str:
    remote = RemoteFolder(url)
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(path, path.relative_to(folder).as_posix())
    return url


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of the files that are fetched."""
    names: list[str] = []
    get = RemoteFolder.get

    def noted(self, name, path):
        names.append(name)
        get(self, name, path)

    monkeypatch.setattr(RemoteFolder, "get", noted)
    return names


def kinds(names: list[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in names}


def assert_same(store: Store, local: Store) -> None:
    """Every row, caption, column and thumbnail of two indexes is the same."""
    assert store.manifest == local.manifest and len(store) == len(local)
    assert [store.row(i) for i in range(len(store))] == [local.row(i) for i in range(len(local))]
    assert list(store.captions) == list(local.captions)
    assert dict(store.image_of_id) == dict(local.image_of_id)
    for name in local.manifest.column_types:
        ours, theirs = store.column(name), local.column(name)
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours[[3, 0, 7]], theirs[[3, 0, 7]])
        np.testing.assert_array_equal(ours[2:8], theirs[2:8])
        np.testing.assert_array_equal(ours[:], theirs[:])
        np.testing.assert_array_equal(ours[8:2:-3], theirs[8:2:-3])
    for image in range(len(store)):
        assert store.thumbnail(image) == local.thumbnail(image)


def test_it_holds_what_the_local_one_does(url, local, tmp_path):
    assert_same(Store(RemoteFiles(url, tmp_path / "cache")), Store(local))


@pytest.mark.parametrize(
    ("stage", "bits"),
    [("exact", None), ("codes", 16), ("faiss-hnsw", None), ("faiss-binary-flat", 8)],
)
def test_every_first_stage_answers_as_over_the_local_one(url, local, tmp_path, stage, bits):
    if "faiss" in stage:
        pytest.importorskip("faiss")
    shutil.copytree(local, tmp_path / "local")
    opened = ImageIndex.open(url, first_stage=stage, bits=bits, cache=tmp_path / "cache")
    expected = ImageIndex.open(tmp_path / "local", first_stage=stage, bits=bits)
    asked = CODED.encode_texts(TEXTS)
    queries = expected.codes("embeddings")[:2] if bits else asked.embeddings
    for ours, theirs in ((opened.images, expected.images), (opened.texts, expected.texts)):
        for one, other in zip(ours.nearest(queries, 5), theirs.nearest(queries, 5), strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        opened.tokens[np.array([7, 2])].columns["tokens"],
        expected.tokens[np.array([7, 2])].columns["tokens"],
    )


def test_files_are_fetched_when_they_are_needed_and_once(url, tmp_path, fetched):
    files = RemoteFiles(url, tmp_path / "cache")
    store = Store(files)
    assert kinds(fetched) == {"gone", *LOOKUPS} and len(fetched) == 1 + 3 * 4
    for act, expected in (
        (lambda: store.row(0), {"rows-00000.jsonl"}),
        (lambda: store.tokens(np.array([0, 10])), {"tokens-00000.npy", "tokens-00002.npy"}),
        (lambda: store.thumbnail(5), {"thumbnails-00001.bin", "rows-00001.jsonl"}),
        (lambda: store.column("codes").beginning(1), set()),
        (lambda: store.column("codes").beginning(1)[7:], {"codes-00001.npy", "codes-00002.npy"}),
        (lambda: store.embeddings.fetch(), {f"embeddings-{i:05d}.npy" for i in range(3)}),
    ):
        fetched.clear()
        act()
        assert set(fetched) == expected and len(fetched) == len(expected)
        act()
        assert len(fetched) == len(expected)
    fetched.clear()
    store.fetch()
    small = {"captions", "codes", "caption_codes", "rows"}
    assert kinds(fetched) == small and "codes-00000.npy" in fetched and len(fetched) == 8
    fetched.clear()
    again = Store(RemoteFiles(url, tmp_path / "cache"))
    assert len(again.tokens(np.array([1, 9]))) == 2 and again.row(2).id and len(again.embeddings[:])
    assert fetched == []


def test_after_a_change_only_what_is_new_is_fetched(url, tmp_path, fetched):
    opened = Store(RemoteFiles(url, tmp_path / "cache"))
    everything = opened.tokens(np.arange(len(opened))).columns["tokens"]
    elsewhere = RemoteFiles(url, tmp_path / "other")
    assert build(CODED, CODED_STAMP, Colours(14), "colours", elsewhere)
    remove(elsewhere, ["01"])
    fetched.clear()
    now = Store(RemoteFiles(url, tmp_path / "cache"))
    assert len(now) == 12 and "01" not in now.image_of_id and "13" in now.image_of_id
    now.tokens(np.arange(len(now)))
    new = {f"{kind}-00003.npy" for kind in (*LOOKUPS, "tokens")} | {"gone-00000.npy"}
    assert {name for name in fetched if not name.startswith("rows")} == new
    np.testing.assert_array_equal(opened.tokens(np.arange(11)).columns["tokens"], everything)


def test_the_cache_stays_below_its_limit_and_answers_are_right(url, local, tmp_path, fetched):
    """There is room for all small files, and for the tokens of two shards of three."""
    Store(RemoteFiles(url, tmp_path / "measured")).embeddings.fetch()
    small = sum(path.stat().st_size for path in (tmp_path / "measured").rglob("*-*.*"))
    size = max(path.stat().st_size for path in local.glob("tokens-*"))
    room = (small + 2.5 * size) / 1e9
    store, expected = Store(RemoteFiles(url, tmp_path / "cache", room)), Store(local)
    store.embeddings.fetch()
    large = store.folder / "large"
    fetched.clear()
    for images in ([0], [5], [10], [0, 10], [0, 5, 10], [*range(11)], [3]):
        got = store.tokens(np.array(images)).columns["tokens"]
        np.testing.assert_array_equal(got, expected.tokens(np.array(images)).columns["tokens"])
        assert sum(path.stat().st_size for path in large.iterdir()) <= 2.5 * size
    assert kinds(fetched) == {"tokens"} and len(fetched) > 3
    mapped = Path("/proc/self/maps").read_text()
    assert str(large) not in mapped, "no deleted file keeps its room"


def test_readers_of_one_cache_do_not_disturb_each_other(url, local, tmp_path):
    """Each has an object of its own, as processes have, and there is room for one file."""
    expected = Store(local).tokens(np.arange(11)).columns["tokens"]
    wrong: list[object] = []

    def read(seed: int) -> None:
        try:
            store = Store(RemoteFiles(url, tmp_path / "cache", 1e-6))
            for _ in range(4):
                images = np.random.default_rng(seed).permutation(11)
                got = store.tokens(images).columns["tokens"]
                if not np.array_equal(got, expected[images]):
                    wrong.append(images)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


READER = """
import sys
import numpy as np
from pathlib import Path
from edje_jax.index.files import RemoteFiles
from edje_jax.index.store import Store

store = Store(RemoteFiles(sys.argv[1], Path(sys.argv[2])))
print(float(store.tokens(np.arange(len(store))).columns["tokens"].astype(np.float32).sum()))
"""


def test_processes_share_a_cache(local, tmp_path):
    url = uploaded(local, f"file://{tmp_path}/bucket/photos.index")
    command = [sys.executable, "-c", READER, url, str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    read = {reader.communicate()[0] for reader in readers}
    expected = Store(local).tokens(np.arange(11)).columns["tokens"].astype(np.float32).sum()
    assert read == {f"{float(expected)}\n"}
    names = [path.name for path in tmp_path.glob("cache/*/large/*")]
    assert len(names) == 3 and not [name for name in names if name.endswith(".tmp")]


@pytest.mark.parametrize("name", ["tokens-00001.npy", "id_hashes-00001.npy", "rows-00001.jsonl"])
def test_a_damaged_file_is_named_by_its_url(url, tmp_path, name):
    remote = RemoteFolder(url)
    data = bytearray(remote.read(name))
    data[-3] ^= 1
    remote.write(name, bytes(data))
    with pytest.raises(BadStore, match=f"{url}/{name}: not what was written: its checksum differs"):
        store = Store(RemoteFiles(url, tmp_path / "cache"))
        store.row(5)
        store.tokens(np.array([5]))
    assert list(verify(RemoteFiles(url, tmp_path / "cache"))) == [
        (name, "not what was written: its checksum differs")
    ]
    remote.write(name, bytes(data[:-1]))
    assert [fault for _, fault in verify(url)] == [
        f"{len(data) - 1} bytes, written with {len(data)}"
    ]


def test_a_missing_file_is_named_by_its_url(url, tmp_path):
    store = Store(RemoteFiles(url, tmp_path / "cache"))
    RemoteFolder(url).delete("tokens-00002.npy")
    with pytest.raises(BadStore, match=f"{url}/tokens-00002.npy: missing, though the manifest"):
        store.tokens(np.array([0, 10]))
    store.tokens(np.array([0]))
    assert list(verify(RemoteFiles(url, tmp_path / "cache"))) == [("tokens-00002.npy", "missing")]


def test_where_no_index_is_the_error_names_the_url(url, tmp_path):
    with pytest.raises(BadStore, match=f"{url}2: no index here .*--out {url}2"):
        ImageIndex.open(f"{url}2", cache=tmp_path)
    RemoteFolder(url).write("manifest.json", b"{")
    with pytest.raises(BadStore, match=f"{url}/manifest.json: not valid JSON"):
        ImageIndex.open(url, cache=tmp_path)


def test_a_stored_first_stage_is_fetched_and_not_built(url, tmp_path, monkeypatch, fetched):
    pytest.importorskip("faiss")
    built = ImageIndex.open(url, first_stage="faiss-hnsw", cache=tmp_path / "cache")
    expected = built.images.nearest(CODED.embed_texts(TEXTS), 4)
    assert not RemoteFolder(url).names(folder="first-stage"), "built in the cache's folder alone"
    publish_first_stage(built.store, "faiss-hnsw", "embeddings")
    publish_first_stage(built.store, "faiss-hnsw", "embeddings")
    assert built.store.files.stages() == ["first-stage/faiss-hnsw/embeddings"]
    fetched.clear()
    with monkeypatch.context() as patch:
        patch.setattr(first_stages, "extend_first_stage", lambda *_: 1 / 0)
        for _ in range(2):
            opened = ImageIndex.open(url, first_stage="faiss-hnsw", cache=tmp_path / "other")
            found = opened.images.nearest(CODED.embed_texts(TEXTS), 4)
            np.testing.assert_array_equal(found.rows, expected.rows)
    assert len([name for name in fetched if name.startswith("first-stage/")]) == 1
    assert "embeddings" not in kinds(fetched)
    build(CODED, CODED_STAMP, Colours(17), "colours", RemoteFiles(url, tmp_path / "cache"))
    grown = Store(RemoteFiles(url, tmp_path / "other"))
    stamp = extend_first_stage(grown, "faiss-hnsw", "embeddings")
    assert stamp.rows == 17 and stamp.trained_on == 12
    publish_first_stage(grown, "faiss-hnsw", "embeddings")
    last = ImageIndex.open(url, first_stage="faiss-hnsw", cache=tmp_path / "third")
    assert isinstance(last.images, Covering) and last.images.num_uncovered == 0
    assert len(last.images.nearest(np.eye(3), 3).rows) == 3


def test_a_first_stage_that_is_damaged_there_is_built_here(url, tmp_path, caplog):
    pytest.importorskip("faiss")
    first = ImageIndex.open(url, first_stage="faiss-hnsw", cache=tmp_path / "cache")
    expected = first.images.nearest(CODED.embed_texts(TEXTS), 4)
    publish_first_stage(first.store, "faiss-hnsw", "embeddings")
    remote, stage = RemoteFolder(url), "first-stage/faiss-hnsw/embeddings"
    (name,) = set(remote.names(folder=stage)) - {"stamp.json"}
    remote.write(f"{stage}/{name}", b"?" + remote.read(f"{stage}/{name}")[1:])
    with caplog.at_level(logging.WARNING):
        opened = ImageIndex.open(url, first_stage="faiss-hnsw", cache=tmp_path / "other")
        found = opened.images.nearest(CODED.embed_texts(TEXTS), 4)
    np.testing.assert_array_equal(found.rows, expected.rows)
    assert "its checksum differs" in caplog.text and "it is built anew" in caplog.text


def test_compaction_deletes_a_first_stage_that_it_makes_useless(url, tmp_path):
    files = RemoteFiles(url, tmp_path / "cache")
    index = ImageIndex(Store(files), first_stage="faiss-binary-flat", bits=8)
    assert len(index.images)
    publish_first_stage(index.store, "faiss-binary-flat", "embeddings", 8)
    remove(files, ["00", "05", "11"])
    assert compact(files) == 4 and files.stages() == []
    assert not RemoteFolder(url).names(folder="first-stage/faiss-binary-flat-8/codes")


def test_an_index_of_an_older_version_opens_and_is_brought_up_to_date(tmp_path):
    shutil.copytree(OLD / "int8", tmp_path / "local")
    url = uploaded(OLD / "int8", f"memory://{tmp_path}/old.index")
    files = RemoteFiles(url, tmp_path / "cache")
    assert_same(Store(files), Store(tmp_path / "local"))
    assert compact(files) == compact(tmp_path / "local")
    assert_same(Store(files), Store(tmp_path / "local"))
    assert set(RemoteFolder(url).names()) == {path.name for path in (tmp_path / "local").iterdir()}


def test_a_store_is_opened_again_where_it_is_sent(url, tmp_path):
    store = Store(RemoteFiles(url, tmp_path / "cache", 0.5))
    again = pickle.loads(pickle.dumps(store))
    assert str(again.files) == url and again.folder == store.folder
    assert_same(again, store)


def test_the_cache_is_in_the_users_folder_unless_told_otherwise(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = Store(url).folder
    assert folder.parent == tmp_path / "home" / "edje_jax" / "indexes"
    assert folder.name.startswith("photos.index-") and folder != files_of(f"{url}2").folder
    monkeypatch.setattr(files_module, "cache_folder", lambda _: None)
    with pytest.raises(BadStore, match="no folder for copies of its files; give one with --cache"):
        Store(url)


def test_a_path_is_no_url(local):
    assert isinstance(files_of(local), LocalFiles) and files_of(str(local)).folder == local
    assert isinstance(files_of("file:///tmp/x", "/tmp/y"), RemoteFiles)


def test_a_disk_that_is_full_is_told_as_that(url, tmp_path, monkeypatch):
    store = Store(RemoteFiles(url, tmp_path / "cache"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    monkeypatch.setattr(RemoteFolder, "get", full)
    with pytest.raises(OSError) as error:
        store.tokens(np.array([0]))
    assert error.value.errno == errno.ENOSPC


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from edje_jax.index.files import RemoteFiles
from edje_jax.index.store import Store
from edje_jax.system.remote_folder import RemoteFolder

get = RemoteFolder.get

def half(self, name, path):
    get(self, name, path)
    if name == "tokens-00001.npy":
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

RemoteFolder.get = half
store = Store(RemoteFiles(sys.argv[1], Path(sys.argv[2])))
store.tokens(np.arange(len(store)))
"""


def test_a_reader_that_was_killed_while_it_fetched_disturbs_no_other(local, tmp_path):
    url = uploaded(local, f"file://{tmp_path}/bucket/photos.index")
    command = [sys.executable, "-c", KILLED, url, str(tmp_path / "cache")]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert ended.returncode == -signal.SIGKILL
    assert_same(Store(RemoteFiles(url, tmp_path / "cache")), Store(local))
    assert not list(tmp_path.glob("cache/*/*/*.tmp"))
    assert fsspec.filesystem("file").exists(f"{url}/manifest.json")
