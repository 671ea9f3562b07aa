"""First stages kept in an index: built once, gone on with, extended, and never wrong by being old.

Covers index/recall.py and index/stage_upkeep.py.
"""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.first_stage.base import Allowed, Nearest, Vectors
from edje_jax.first_stage.packing import unpack
from edje_jax.first_stage.registry import FIRST_STAGES, find_first_stage
from edje_jax.index import build as building
from edje_jax.index import first_stages
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.first_stages import StagePlace, extend_first_stage, open_first_stage
from edje_jax.index.maintain import compact, remove
from edje_jax.index.partition import Partition
from edje_jax.index.stage_upkeep import stored_stages, tidy_first_stages, verify_first_stages
from edje_jax.index.store import Store
from edje_jax.search.cascade import search_images
from edje_jax.system.files import lock_file
from tests.colour_runtime import CODED, CODED_STAMP, RUNTIME, STAMP, Colours

QUERIES = np.array([[0.8, 0.5, 0.2], [0.1, 0.6, 0.7]], np.float32)
ROOT = Path(__file__).parents[2]


class MadeUp:
    """A first stage that stores its embeddings as they are."""

    is_exact = True
    is_stored = True
    is_fitted = False
    version = 1
    reads = "embeddings"
    efforts = ()
    effort = 0

    def __init__(self, embeddings: np.ndarray):
        self.embeddings = embeddings

    @classmethod
    def build(cls, vectors: Vectors) -> "MadeUp":
        return cls(vectors[:])

    @classmethod
    def start(cls, vectors: Vectors) -> "MadeUp":
        return cls(vectors[:0])

    def add(self, rows: np.ndarray) -> None:
        self.embeddings = np.concatenate([self.embeddings, rows])

    def write(self, folder: Path) -> Path:
        np.save(folder / "embeddings.npy", self.embeddings)
        return folder / "embeddings.npy"

    @classmethod
    def open(cls, file: Path, grows: bool = False) -> "MadeUp":
        return cls(np.load(file))

    def __len__(self) -> int:
        return len(self.embeddings)

    def nearest(self, queries: np.ndarray, k: int, allowed: Allowed = None) -> Nearest:
        place = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        cosines = queries @ self.embeddings[place].T
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return Nearest(np.take_along_axis(cosines, order, axis=1), place[order])


@pytest.fixture(autouse=True)
def surroundings(monkeypatch) -> Iterator[None]:
    """Shards of five images, one more first stage, and one thread of faiss, with which a graph is
    the same every time."""
    monkeypatch.setattr(building, "SHARD_ROWS", 5)
    monkeypatch.setitem(FIRST_STAGES, "made-up", f"{__name__}.MadeUp")
    try:
        import faiss
    except ImportError:
        yield
        return
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


@pytest.fixture
def index(tmp_path) -> Path:
    """An index of twelve images in three shards."""
    assert build(RUNTIME, STAMP, Colours(12), "colours", tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def whole_index(tmp_path_factory) -> Path:
    """An index of 230 images with codes in five shards."""
    out = tmp_path_factory.mktemp("large") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", 50)
        assert build(CODED, CODED_STAMP, Colours(230), "colours", out)
    return out


@pytest.fixture
def large(whole_index, tmp_path, monkeypatch) -> Path:
    """A copy of an index of 230 images with codes in five shards."""
    monkeypatch.setattr(building, "SHARD_ROWS", 50)
    return Path(shutil.copytree(whole_index, tmp_path / "large"))


STORED = [
    name
    for name, kind in ((name, find_first_stage(name)) for name in FIRST_STAGES)
    if kind.is_stored and kind.reads == "embeddings"
]
APPROXIMATE = [name for name in FIRST_STAGES if not find_first_stage(name).is_exact]


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


def stamp_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stamp.json").read_text())


def no_building(monkeypatch, name: str) -> None:
    def build(vectors):
        raise AssertionError("built, though it is stored")

    for way in ("build", "start"):
        monkeypatch.setattr(find_first_stage(name), way, build)


def warnings(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


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
    assert len(list((folder / "embeddings").iterdir())) == 3  # With the stamp and the lock


def test_answers_are_right_after_every_change(index, name):
    """After images were added, removed, compacted, and taken in again; before the first stage is
    extended and then."""
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
    extend_first_stage(Store(index), name, "embeddings")
    assert answers(index, name) == found


def test_what_was_added_is_searched_exactly_until_the_first_stage_is_extended(
    index, name, monkeypatch, caplog
):
    extend_first_stage(Store(index), name, "embeddings")
    build(RUNTIME, STAMP, Colours(20), "colours", index)
    no_building(monkeypatch, name)
    expected = answers(index, "exact")
    assert answers(index, name) == expected
    assert ImageIndex.open(index, first_stage=name).images.num_uncovered == 8
    assert "8 of 20 rows are not in this first stage" in caplog.text
    assert f"extend it with edje index first-stage {index} {name}" in caplog.text
    kind, added, told = find_first_stage(name), [], []
    add = kind.add

    def counted(self, rows):
        added.append(len(rows))
        add(self, rows)

    monkeypatch.setattr(kind, "add", counted)
    stamp = extend_first_stage(
        Store(index), name, "embeddings", progress=lambda *done: told.append(done)
    )
    assert added == [5, 3] and told == [(17, 20), (20, 20)]
    assert stamp.rows == 20 and stamp.trained_on == 12
    caplog.clear()
    assert answers(index, name) == expected and not warnings(caplog)
    assert ImageIndex.open(index, first_stage=name).images.num_uncovered == 0
    before = (index / "first-stage" / name / "embeddings" / "stamp.json").stat()
    assert extend_first_stage(Store(index), name, "embeddings") == stamp
    after = (index / "first-stage" / name / "embeddings" / "stamp.json").stat()
    assert added == [5, 3] and after.st_mtime_ns == before.st_mtime_ns, "nothing was missing"


@pytest.mark.parametrize("name, trained_on", [("faiss-ivf", 60), ("faiss-hnsw", 12)])
def test_lists_are_fitted_anew_once_they_hold_many_times_as_many_rows(index, name, trained_on):
    pytest.importorskip("faiss")
    assert extend_first_stage(Store(index), name, "embeddings").trained_on == 12
    build(RUNTIME, STAMP, Colours(48), "colours", index)
    assert extend_first_stage(Store(index), name, "embeddings").trained_on == 12
    build(RUNTIME, STAMP, Colours(60), "colours", index)
    stamp = extend_first_stage(Store(index), name, "embeddings")
    assert (stamp.trained_on, stamp.rows) == (trained_on, 60)
    assert answers(index, name) == answers(index, "exact")


KILLED = """
import os, signal, sys
from pathlib import Path
import faiss
from edje_jax.index import first_stages
from edje_jax.index.store import Store

faiss.omp_set_num_threads(1)
first_stages.SAVE_SECONDS = -1
save, saved = first_stages._save, []

def killed(*arguments):
    saved.append(save(*arguments))
    if len(saved) == 2:
        first_stages._save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    return saved[-1]

first_stages._save = killed
store, (name, column, bits) = Store(Path(sys.argv[1])), sys.argv[2:]
first_stages.extend_first_stage(store, name, column, int(bits) or None)
"""


@pytest.mark.parametrize(
    "name, bits", [("faiss-hnsw", 0), ("faiss-ivf", 0), ("faiss-binary-ivf", 64), ("codes", 16)]
)
def test_a_build_that_was_killed_goes_on_to_the_same_first_stage(large, name, bits):
    """Killed between the second store and the third, of five; what there is answers meanwhile."""
    pytest.importorskip("faiss")
    whole = Path(shutil.copytree(large, large.with_name("whole")))
    expected = extend_first_stage(Store(whole), name, "embeddings", bits or None)
    command = [sys.executable, "-c", KILLED, str(large), name, "embeddings", str(bits)]
    killed = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    place = Path("first-stage", f"{name}-{bits}" if bits else name)
    place /= "codes" if bits else "embeddings"
    assert [cover["rows"] for cover in stamp_of(large / place)["covers"]] == [50, 50]
    queries = Store(large).column("codes" if bits else "embeddings")[:40:9]
    queries = queries[:, : bits // 8] if bits else queries
    part = open_first_stage(Store(large), name, "embeddings", bits or None)
    assert part.num_uncovered == 130 and (part.stage.effort > 0) == (not part.stage.is_exact)
    assert (part.nearest(queries, 20).rows >= 0).all()
    added = []
    done = extend_first_stage(
        Store(large), name, "embeddings", bits or None, lambda *now: added.append(now)
    )
    assert done == expected and added == [(150, 230), (200, 230), (230, 230)]
    for path in (whole / place).iterdir():
        assert (large / place / path.name).read_bytes() == path.read_bytes()
    assert len(list((large / place).iterdir())) == 3
    ours, theirs = (
        open_first_stage(Store(one), name, "embeddings", bits or None).nearest(queries, 50)
        for one in (large, whole)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_process_that_ends_before_the_stamp_leaves_nothing_in_use(index, stored, monkeypatch):
    before = stamp_of(stored)
    build(RUNTIME, STAMP, Colours(20), "colours", index)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(first_stages, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            extend_first_stage(Store(index), "made-up", "embeddings")
    assert stamp_of(stored) == before
    assert len(list(stored.glob("*.npy"))) == 2
    assert ImageIndex.open(index, first_stage="made-up").images.num_uncovered == 8
    extend_first_stage(Store(index), "made-up", "embeddings")
    assert len(list(stored.glob("*.npy"))) == 1 and stamp_of(stored) != before
    assert answers(index, "made-up") == answers(index, "exact")


def test_of_two_processes_one_builds_and_the_other_waits_or_says_so(index, name):
    folder = index / "first-stage" / name / "embeddings"
    folder.mkdir(parents=True)
    found = []
    opening = threading.Thread(target=lambda: found.append(answers(index, name)), daemon=True)
    with lock_file(folder / "lock"):
        with pytest.raises(BlockingIOError, match="another process is writing here"):
            extend_first_stage(Store(index), name, "embeddings")
        opening.start()
        opening.join(0.5)
        assert opening.is_alive() and [path.name for path in folder.iterdir()] == ["lock"]
    opening.join(60)
    assert found == [answers(index, "exact")]
    assert extend_first_stage(Store(index), name, "embeddings").rows == 12


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_first_stage_that_is_being_replaced_is_opened_once_it_is_there(
    index, stored, monkeypatch, caplog, is_busy
):
    """Another process deletes the file between the reading of its stamp and its opening."""
    build(RUNTIME, STAMP, Colours(20), "colours", index)
    real, extend, stage = MadeUp.open, first_stages._extend, []

    def replaced(file: Path, grows: bool = False) -> MadeUp:
        if not stage:
            stage.append(file)
            extend(StagePlace.of(Store(index), "made-up", "embeddings", None))
        return real(file, grows)

    def busy(*_, **__):
        raise BlockingIOError("another process is writing")

    monkeypatch.setattr(MadeUp, "open", replaced)
    no_building(monkeypatch, "made-up")
    if is_busy:
        monkeypatch.setattr(first_stages, "_extend", busy)
    assert ImageIndex.open(index, first_stage="made-up").images.num_uncovered == 0
    assert not stage[0].exists() and not warnings(caplog)


def test_a_first_stage_of_another_version_is_built_anew(index, stored, monkeypatch):
    monkeypatch.setattr(find_first_stage("made-up"), "version", 2)
    assert len(ImageIndex.open(index, first_stage="made-up").images) == 12
    assert stamp_of(stored)["version"] == 2
    no_building(monkeypatch, "made-up")
    assert answers(index, "made-up") == answers(index, "exact")


def test_a_first_stage_of_an_older_format_is_replaced(index, name, caplog):
    folder = index / "first-stage" / name / "embeddings"
    folder.mkdir(parents=True)
    files = {"index.faiss": {"bytes": 4, "sha256": "0" * 64}}
    (folder / "index.faiss").write_bytes(b"1234")
    older = {"format": 1, "version": 1, "rows": 12, "columns": ["0" * 64], "files": files}
    (folder / "stamp.json").write_text(json.dumps(older))
    assert answers(index, name) == answers(index, "exact")
    assert stamp_of(folder)["format"] == 2 and not warnings(caplog)
    assert not (folder / "index.faiss").exists()


def test_compacting_keeps_a_first_stage_most_of_whose_shards_are_there(index, stored, monkeypatch):
    compact(index)
    assert stored.exists()
    remove(index, ["03"])
    compact(index)
    with monkeypatch.context() as patch:
        no_building(patch, "made-up")
        assert answers(index, "made-up") == answers(index, "exact")
        assert ImageIndex.open(index, first_stage="made-up").images.num_uncovered == 4
    remove(index, ["07"])
    with lock_file(stored / "lock"):
        compact(index)
        assert (stored / "stamp.json").exists(), "another process is building it"
    remove(index, ["08"])
    compact(index)
    assert not (index / "first-stage" / "made-up" / "embeddings").exists()
    assert answers(index, "made-up") == answers(index, "exact")


def test_first_stages_of_parts_are_verified_and_tidied_too(large):
    for number in range(2):
        part = Partition(large, Store(large).manifest, number, 2).open()
        extend_first_stage(part, "codes", "embeddings", 16)
    found = {stage: stamp for stage, _, stamp in stored_stages(Store(large))}
    names = [f"partitions/{number}-of-2/first-stage/codes-16/codes" for number in range(2)]
    assert list(found) == names and all(found.values())
    assert not list(verify_first_stages(large))
    path = large / names[1] / found[names[1]].file["name"]
    path.write_bytes(b"x" * path.stat().st_size)
    ((file, told),) = verify_first_stages(large)
    assert file == f"{names[1]}/{path.name}" and "checksum differs" in told
    stamp = large / names[0] / "stamp.json"
    stamp.write_text(re.sub(r'"sha256": "[0-9a-f]{8}', '"sha256": "00000000', stamp.read_text()))
    tidy_first_stages(large)
    assert not (large / names[0]).exists() and (large / names[1]).exists()


def test_an_index_that_cannot_be_written_to_is_searched_all_the_same(index, name, caplog):
    (index / "first-stage").write_text("no folder can be made here")
    assert answers(index, name) == answers(index, "exact")
    (warning,) = warnings(caplog)
    assert "built anew at every opening: it cannot be kept" in warning


def test_a_damaged_first_stage_is_built_anew(index, name, caplog):
    expected = answers(index, name)
    folder = index / "first-stage" / name / "embeddings"
    files = [path for path in folder.iterdir() if path.name != "lock"]
    assert len(files) == 2
    for file in files:
        data = file.read_bytes()
        for damaged in (data[: len(data) // 2], bytes(len(data)), b""):
            file.write_bytes(damaged)
            assert answers(index, name) == expected
            (warning,) = warnings(caplog)
            assert "damaged" in warning and file.read_bytes() == data
            caplog.clear()
        file.unlink()
        assert answers(index, name) == expected and file.read_bytes() == data
        caplog.clear()


@pytest.mark.parametrize("name", APPROXIMATE)
def test_the_effort_is_the_least_that_finds_enough_and_is_kept(large, name, monkeypatch):
    """Recalls of the stamp are counted once more by sorting; one that is enough ends them."""
    pytest.importorskip("faiss")
    kind = find_first_stage(name)
    monkeypatch.setattr(kind, "efforts", (1, 2, 500, 501))
    remove(large, ["03", "100"])
    store = Store(large)
    stamp = extend_first_stage(store, name, "embeddings")
    is_coded = kind.reads == "codes"
    assert stamp.asked_by == ("caption_codes" if is_coded else "captions")
    asked = store.column(stamp.asked_by)[:]  # As many as there are, of 256
    rows = store.column("codes" if is_coded else "embeddings")[:]
    if is_coded:
        asked, rows = (unpack(one).astype(np.float32) / 8 for one in (asked, rows))
    near = asked @ rows.T
    least = -np.sort(-near)[:, 99:100] - 1e-6
    opened = open_first_stage(store, name, "embeddings")
    assert opened.stage.effort == stamp.effort == int([*stamp.recall_at_100][-1])
    queries = store.column(stamp.asked_by)[:]
    for effort, recall in stamp.recall_at_100.items():
        opened.stage.effort = int(effort)
        found = opened.nearest(queries, 100).rows
        hits = [
            min(sum(near[query, row] >= least[query, 0] for row in own if row >= 0), 100)
            for query, own in enumerate(found)
        ]
        assert recall == pytest.approx(np.mean(hits) / 100, abs=1e-4)
    recalls = [*stamp.recall_at_100.values()]
    assert recalls[-1] >= 0.98 and all(recall < 0.98 for recall in recalls[:-1])
    assert stamp.effort != 501
