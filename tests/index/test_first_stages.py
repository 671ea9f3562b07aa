"""First stages kept in an index: built once, opened again, and never in use once they are stale."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.first_stage.base import FirstStage, Nearest, Vectors
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage
from edje_jax.index import build as building
from edje_jax.index import first_stages
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import compact, remove
from edje_jax.search.cascade import search_images
from tests.colour_runtime import RUNTIME, STAMP, Colours

QUERIES = np.array([[0.8, 0.5, 0.2], [0.1, 0.6, 0.7]], np.float32)


class MadeUp:
    """A first stage that stores its embeddings as they are."""

    is_exact = True
    is_stored = True
    version = 1
    reads = "embeddings"

    def __init__(self, embeddings: np.ndarray):
        self.embeddings = embeddings

    @classmethod
    def build(cls, vectors: Vectors, folder: Path | None) -> FirstStage:
        if folder:
            np.save(folder / "embeddings.npy", vectors[:])
        return cls(vectors[:])

    @classmethod
    def open(cls, folder: Path) -> FirstStage:
        return cls(np.load(folder / "embeddings.npy"))

    def __len__(self) -> int:
        return len(self.embeddings)

    def nearest(self, queries: np.ndarray, k: int) -> Nearest:
        cosines = queries @ self.embeddings.T
        rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32)
        return Nearest(np.take_along_axis(cosines, rows, axis=1), rows)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Shards of five images, and one more first stage."""
    monkeypatch.setattr(building, "SHARD_ROWS", 5)
    monkeypatch.setitem(FIRST_STAGES, "made-up", f"{__name__}.MadeUp")


@pytest.fixture
def index(tmp_path) -> Path:
    """An index of twelve images in three shards."""
    assert build(RUNTIME, STAMP, Colours(12), "colours", tmp_path / "index")
    return tmp_path / "index"


STORED = [
    name
    for name, kind in ((name, find_first_stage(name)) for name in FIRST_STAGES)
    if kind.is_stored and kind.reads == "embeddings"
]


@pytest.fixture(params=["made-up", *STORED])
def name(request) -> str:
    """Every first stage of embeddings that is stored."""
    if request.param.startswith("faiss"):
        pytest.importorskip("faiss")
    return request.param


@pytest.fixture
def stored(index) -> Path:
    """Folder of the stored first stage of the index's images."""
    opened = ImageIndex.open(index, first_stage="made-up")
    assert len(opened.images) == 12
    return index / "first-stage" / "made-up" / "embeddings"


def answers(index: Path, name: str) -> list[list[str]]:
    """Ids of all images for each query, nearest first."""
    opened = ImageIndex.open(index, first_stage=name)
    near = opened.images.nearest(QUERIES, 99)
    found, _ = search_images(RUNTIME, opened, ["red"], k=99)
    assert set(found[0].rows.tolist()) == set(range(len(opened)))
    return [[opened.store.row(int(row)).id for row in rows] for rows in near.rows]


def no_building(monkeypatch, name: str) -> None:
    def build(vectors, folder):
        raise AssertionError("built, though it is stored")

    monkeypatch.setattr(find_first_stage(name), "build", build)


def test_a_first_stage_is_built_once_and_then_opened(index, name, monkeypatch):
    expected = answers(index, "exact")
    assert not (index / "first-stage").exists()
    assert answers(index, name) == expected
    captions = ImageIndex.open(index, first_stage=name).texts.nearest(QUERIES, 4)
    no_building(monkeypatch, name)
    assert answers(index, name) == expected
    again = ImageIndex.open(index, first_stage=name).texts.nearest(QUERIES, 4)
    np.testing.assert_array_equal(again.rows, captions.rows)
    np.testing.assert_array_equal(again.similarities, captions.similarities)
    folder = index / "first-stage" / name
    assert sorted(path.name for path in folder.iterdir()) == ["captions", "embeddings"]


def test_a_stale_first_stage_is_never_in_use(index, name):
    """After images were added, removed, compacted, and taken in again."""
    assert len(answers(index, name)[0]) == 12
    changes = (
        lambda: build(RUNTIME, STAMP, Colours(20), "colours", index),
        lambda: remove(index, ["03", "17"]),
        lambda: compact(index),
        lambda: build(RUNTIME, STAMP, Colours(20), "colours", index, BuildOptions(restore=True)),
    )
    for change, count in zip(changes, (20, 18, 18, 20), strict=True):
        change()
        found = answers(index, name)
        assert found == answers(index, "exact") and len(found[0]) == count


def test_a_first_stage_of_another_version_is_built_anew(index, stored, monkeypatch):
    monkeypatch.setattr(find_first_stage("made-up"), "version", 2)
    assert len(ImageIndex.open(index, first_stage="made-up").images) == 12
    assert json.loads((stored / "stamp.json").read_text())["version"] == 2
    no_building(monkeypatch, "made-up")
    assert answers(index, "made-up") == answers(index, "exact")


def test_compacting_gives_the_room_of_stale_first_stages_back(index, stored):
    compact(index)
    assert stored.exists()
    remove(index, ["03"])
    compact(index)
    assert not (index / "first-stage").exists()


def test_a_process_killed_before_the_last_step_leaves_nothing_in_use(index, stored, monkeypatch):
    expected = answers(index, "exact")
    remove(index, ["03"])

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(first_stages, "move", killed)
        patch.setattr(first_stages.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            answers(index, "made-up")
    left = stored.with_name(f"embeddings.{os.getpid()}.tmp")
    assert left.is_dir() and (left / "stamp.json").exists()
    abandoned = stored.with_name("embeddings.99999999.tmp")
    left.rename(abandoned)
    found = answers(index, "made-up")
    assert found == [[one for one in ids if one != "03"] for ids in expected]
    assert [path.name for path in stored.parent.iterdir()] == ["embeddings"]


def test_an_index_that_cannot_be_written_to_is_searched_all_the_same(index, name, caplog):
    (index / "first-stage").write_text("no folder can be made here")
    assert answers(index, name) == answers(index, "exact")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "built anew at every opening: it cannot be kept" in warning


def test_a_damaged_first_stage_is_built_anew(index, name, caplog):
    expected = answers(index, name)
    for file in (index / "first-stage" / name / "embeddings").iterdir():
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2])
        assert answers(index, name) == expected
        assert "damaged" in caplog.text and file.read_bytes() == data
        caplog.clear()
