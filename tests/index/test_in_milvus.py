"""An index whose first stage is in Milvus: the answers, filters, changes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.first_stage.milvus import StaleCollection
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.in_milvus import ROW_BITS, MilvusRows, sync_to_milvus
from edje_jax.index.maintain import compact, remove
from edje_jax.index.store import Store
from edje_jax.search.cascade import search_images
from tests.colour_runtime import CODED, CODED_STAMP, Colours

pytest.importorskip("pymilvus")

KEPT = BuildOptions(metadata=("year",))


class Dated(Colours):
    """Images of a year, from `first` on."""

    first = 2000

    def metadata(self, index: int) -> dict[str, int | str]:
        return {"year": self.first + index, "license": "cc0" if index % 2 else "cc-by"}


class Told(Dated):
    """Images of which every other one has captions, from the first or the second on."""

    def __init__(self, count: int, offset: int):
        super().__init__(count)
        self.offset = offset

    def captions(self, index: int) -> list[str]:
        return ["red", "green"] if index % 2 == self.offset else []


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)


def answers(folder: Path, stage: str, bits: int | None = None, **chosen) -> list:
    index = ImageIndex.open(folder, first_stage=stage, bits=bits)
    selection = index.select(**chosen)
    ranked, _ = search_images(CODED, index, ["red", "green and blue"], 7, chosen=selection)
    return [(one.rows.tolist(), one.similarities) for one in ranked]


def same(found: list, expected: list) -> None:
    """Compare answers; Milvus computes with other roundings."""
    for (rows, similarities), (wanted, exact) in zip(found, expected, strict=True):
        assert rows == wanted
        np.testing.assert_allclose(similarities, exact, atol=1e-5)


def test_milvus_answers_as_exact_search_does_through_changes_and_restarts(tmp_path):
    folder, uri = tmp_path / "index", f"milvus:{tmp_path}/photos.db"

    def sync(bits: int | None = None) -> tuple[int, ...]:
        store = Store(folder)
        done = sync_to_milvus(store, uri, "embeddings", bits)
        sync_to_milvus(store, uri, "captions", bits)
        return tuple(done)

    def check() -> None:
        same(answers(folder, uri), answers(folder, "exact"))
        filter = {"where": "year >= 2004 and not year in [2007, 2011]"}
        same(answers(folder, uri, **filter), answers(folder, "exact", **filter))
        chosen = {"ids": ["01", "05", "06", "no such id"]}
        same(answers(folder, uri, **chosen), answers(folder, "exact", **chosen))

    build(CODED, CODED_STAMP, Dated(12), "dated", folder, KEPT)
    with pytest.raises(
        ValueError, match=r"embeddings.*there is none; bring it up to date with edje"
    ):
        answers(folder, uri)
    assert sync() == (0, 12, 0)
    check()
    build(CODED, CODED_STAMP, Dated(16), "dated", folder, KEPT)
    remove(folder, ["03"])
    with pytest.raises(
        ValueError, match=r"another state .*rows 12, now 15.*edje index first-stage"
    ):
        answers(folder, uri)
    assert sync() == (11, 4, 1)
    check()
    assert compact(folder) == 1
    assert sync() == (5, 10, 10) and len(Store(folder).shards) == 3
    check()
    assert sync(16) == (0, 15, 0)
    same(answers(folder, uri, 16), answers(folder, "codes", 16))
    image = ImageIndex.open(folder, first_stage=uri)
    near = image.texts.nearest(image.store.embeddings[[2]], 5)
    exact = ImageIndex.open(folder).texts.nearest(image.store.embeddings[[2]], 5)
    np.testing.assert_array_equal(near.rows, exact.rows)


def test_changed_metadata_are_asked_for_after_the_next_sync_and_not_before(tmp_path):
    folder, uri = tmp_path / "index", f"milvus:{tmp_path}/photos.db"
    chosen = {"where": "year >= 3004"}

    def sync() -> tuple[int, ...]:
        sync_to_milvus(Store(folder), uri, "captions", None)
        return tuple(sync_to_milvus(Store(folder), uri, "embeddings", None))

    build(CODED, CODED_STAMP, Dated(7), "dated", folder, KEPT)
    assert sync() == (0, 7, 0)
    later = Dated(7)
    later.first = 3000
    assert not build(CODED, CODED_STAMP, later, "dated", folder, KEPT).changed
    with pytest.raises(StaleCollection, match=r"another state .*shards"):
        answers(folder, uri, **chosen)
    assert sync() == (0, 7, 7)
    found = answers(folder, uri, **chosen)
    assert sorted(found[0][0]) == [4, 5, 6]
    same(found, answers(folder, "exact", **chosen))
    more = BuildOptions(metadata=("year", "license"))
    assert not build(CODED, CODED_STAMP, later, "dated", folder, more).changed
    chosen = {"where": "license == 'cc0'"}
    with pytest.raises(StaleCollection, match=r"metadata \["):
        answers(folder, uri, **chosen)
    sync()
    same(answers(folder, uri, **chosen), answers(folder, "exact", **chosen))


def test_captions_that_went_to_other_images_are_sent_again(tmp_path):
    folder, uri = tmp_path / "index", f"milvus:{tmp_path}/photos.db"
    for offset in (0, 1):
        build(CODED, CODED_STAMP, Told(4, offset), "dated", folder, KEPT)
        assert sync_to_milvus(Store(folder), uri, "captions", None)[1:] == (4, 4 * offset)
        store = Store(folder)
        rows = MilvusRows(store, "captions", None)
        ids = [id for block in rows.blocks() for id in block.ids]
        assert ids == [f"{image:02d}" for image in (offset, offset, offset + 2, offset + 2)]


def test_shards_without_captions_are_passed_over(tmp_path):
    class Silent(Dated):
        def captions(self, index: int) -> list[str]:
            return ["red"] if index == 11 else []

    folder, uri = tmp_path / "index", f"milvus:{tmp_path}/photos.db"
    build(CODED, CODED_STAMP, Silent(12), "dated", folder, KEPT)
    assert sync_to_milvus(Store(folder), uri, "captions", None) == (0, 1, 0)
    index = ImageIndex.open(folder, first_stage=uri)
    assert index.texts.nearest(index.store.embeddings[[2]], 5).rows.tolist() == [[0]]


def test_a_key_that_the_opened_index_has_not_is_refused(tmp_path):
    build(CODED, CODED_STAMP, Dated(12), "dated", tmp_path, KEPT)
    remove(tmp_path, ["01"])
    rows = MilvusRows(Store(tmp_path), "embeddings", None)
    own = np.concatenate([block.keys for block in rows.blocks()])
    assert sorted(rows.numbers(own[None])[0].tolist()) == list(range(11))
    np.testing.assert_array_equal(rows.numbers(np.full((2, 3), -1)), np.full((2, 3), -1))
    second = (own >> ROW_BITS << ROW_BITS) + 1
    (gone,) = np.setdiff1d(second, own).tolist()
    shard = 1 << ROW_BITS
    for key in (0, gone, int(own.min()) - shard, int(own.min()) + shard, int(own.max()) + shard):
        with pytest.raises(StaleCollection, match="as it was opened; open the index again"):
            rows.numbers(np.array([[own[0], key]]))
