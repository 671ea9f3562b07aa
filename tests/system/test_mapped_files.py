"""Files are mapped without staying open, and what the system refuses is not called damage."""

import errno
import gc
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.folder import Folder
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import compact, remove
from edje_jax.index.shard_files import BadStore, map_file
from edje_jax.index.store import Store, verify
from edje_jax.scenes.shapes import Shapes
from edje_jax.system.mapped_files import map_array, map_bytes

SHARDS = 40


def open_files() -> list[int]:
    return sorted(map(int, os.listdir("/proc/self/fd")))


@contextmanager
def files_below(limit: int):
    """Let this process open no file whose number is not below a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def many_shards(reranker, tmp_path_factory) -> tuple[Path, Path]:
    """(folder of images, index of a shard for each of them)."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "images").mkdir()
    for number in range(SHARDS):
        Shapes("val").image(number).save(folder / "images" / f"{number:02d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", 1)
        build(
            reranker.runtime, reranker.stamp, Folder(folder / "images"), "folder", folder / "index"
        )
    return folder / "images", folder / "index"


def test_an_index_has_more_shards_than_files_may_be_open(reranker, many_shards):
    images, path = many_shards
    before = open_files()
    with files_below(before[-1] + 20):
        index = ImageIndex.open(path)
        assert len(index.store.shards) == SHARDS and open_files() == before
        assert len(reranker.search(index, ["a star"], k=99, top_k=99)[0]) == SHARDS
        assert index.store.thumbnail(SHARDS - 1)[:2] == b"\xff\xd8"
        assert list(verify(path)) == []
        remove(path, ["00.png"])
        assert compact(path) == 1
        # What was deleted meanwhile can be searched until it is closed.
        assert len(reranker.search(index, ["a star"], k=99, top_k=99)[0]) == SHARDS
        report = build(
            reranker.runtime,
            reranker.stamp,
            Folder(images),
            "folder",
            path,
            BuildOptions(restore=True),
        )
        assert report and report.new == ["00.png"] and len(Store(path)) == SHARDS


def test_what_the_system_refuses_is_not_called_damage(many_shards, tmp_path):
    path = many_shards[1]
    with files_below(0), pytest.raises(OSError) as refused:
        map_file(path / "tokens-00001.npy")
    assert refused.value.errno == errno.EMFILE
    assert refused.value.filename == str(path / "tokens-00001.npy")
    with pytest.raises(OSError) as refused:
        map_bytes(tmp_path)
    assert refused.value.errno == errno.EISDIR


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.empty((0, 5), np.float32),
        np.arange(6, dtype=np.uint16).view(ml_dtypes.bfloat16).view(np.uint16),
        np.array([-1, 7], np.int8),
    ],
)
def test_a_mapped_array_is_what_numpy_wrote(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    mapped = map_array(tmp_path / "a.npy")
    (tmp_path / "a.npy").unlink()
    assert mapped.dtype == array.dtype and np.array_equal(mapped, array)
    assert not mapped.flags.writeable or not mapped.size


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no array"),
        lambda path: np.save(path, np.array([{}], object)),
        lambda path: (np.save(path, np.arange(9)), os.truncate(path, 190)),
        lambda path: np.save(path, np.asfortranarray(np.ones((2, 3)))),
    ],
)
def test_a_file_that_no_index_wrote_is_damaged(write: Callable[[Path], object], tmp_path):
    write(tmp_path / "a.npy")
    with pytest.raises(BadStore, match=r"a\.npy: damaged \(.*\); build the index again"):
        map_file(tmp_path / "a.npy")


def test_headers_are_parsed_by_one_thread_at_a_time(tmp_path):
    """JAX's callback of the garbage collector lets threads change places inside Python's parser."""
    np.save(tmp_path / "a.npy", np.ones((2, 2)))

    def map_from_depth(depth: int) -> np.ndarray:
        return map_from_depth(depth - 1) if depth else map_array(tmp_path / "a.npy")

    thresholds, callback = gc.get_threshold(), lambda *_: time.sleep(0)
    gc.callbacks.append(callback)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as pool:
            arrays = list(pool.map(map_from_depth, [depth % 5 for depth in range(1_000)]))
    finally:
        gc.callbacks.remove(callback)
        gc.set_threshold(*thresholds)
    assert all(array.shape == (2, 2) for array in arrays)
