"""Codes in an index: made with it, kept through every change, and searched.

Covers index/caption_columns.py.
"""

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.first_stage.packing import hamming, pack
from edje_jax.first_stage.registry import find_first_stage
from edje_jax.index import build as building
from edje_jax.index.build import build
from edje_jax.index.caption_columns import code_column_types
from edje_jax.index.maintain import compact, remove
from edje_jax.index.manifest import ColumnType
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store, verify
from tests.colour_runtime import CODED, CODED_STAMP, RUNTIME, STAMP, Colours


class Renamed(Colours):
    """Source of the images of `Colours`, one of whose captions was written anew."""

    def captions(self, index: int) -> list[str]:
        return ["blue, and red"] if index == 7 else super().captions(index)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)


@pytest.fixture
def index(tmp_path):
    """An index of twelve images in three shards, by a model with codes."""
    assert build(CODED, CODED_STAMP, Colours(12), "colours", tmp_path / "index")
    return tmp_path / "index"


def image_codes(source: Colours, rows: list[int]) -> np.ndarray:
    images = np.stack([np.asarray(source.image(i)) for i in rows])
    return pack(CODED.encode_images(images).projections)


def caption_codes(source: Colours, rows: list[int]) -> np.ndarray:
    return pack(CODED.encode_texts([text for i in rows for text in source.captions(i)]).projections)


def assert_holds(index, source: Colours, rows: list[int]) -> None:
    """The index is whole, and has the codes of these images and of their captions."""
    store = Store(index)
    assert not list(verify(index))
    assert [store.row(i).id for i in range(len(store))] == [source.image_id(i) for i in rows]
    np.testing.assert_array_equal(store.column("codes")[:], image_codes(source, rows))
    np.testing.assert_array_equal(store.column("caption_codes")[:], caption_codes(source, rows))


def test_an_index_holds_packed_codes_of_the_longest_length(index):
    types = Store(index).manifest.column_types
    assert types["codes"] == ColumnType("uint8", (8,))
    assert types["caption_codes"] == ColumnType("uint8", (8,), per="caption")
    assert_holds(index, Colours(12), [*range(12)])
    assert len(np.unique(Store(index).column("codes")[:], axis=0)) > 6, "codes tell images apart"


def test_a_model_without_codes_adds_no_column(tmp_path):
    assert build(RUNTIME, STAMP, Colours(3), "colours", tmp_path)
    assert code_column_types(0) == {}
    assert not {"codes", "caption_codes"} & set(Store(tmp_path).manifest.column_types)
    assert not list(tmp_path.glob("*codes*"))


@pytest.mark.parametrize("bits", [8, 16])
def test_shorter_codes_are_the_beginnings_of_longer_ones(index, bits):
    opened = ImageIndex.open(index, first_stage="codes", bits=bits)
    whole = opened.store.column("codes")[:]
    np.testing.assert_array_equal(opened.codes("embeddings")[:], whole[:, : bits // 8])
    assert opened.codes("captions").shape == (12, bits // 8)
    queries = CODED.encode_texts(["red", "blue and green"]).projections
    found = opened.images.nearest(pack(np.ascontiguousarray(queries[:, :bits])), 12)
    distances = hamming(pack(queries)[:, : bits // 8], whole[:, : bits // 8])
    np.testing.assert_array_equal(found.rows, np.argsort(distances, axis=1, kind="stable"))


def test_the_longest_codes_are_searched_unless_told_otherwise(index):
    assert ImageIndex.open(index, first_stage="codes").bits == 64
    assert ImageIndex.open(index).bits is None


def test_codes_follow_their_rows_through_every_change(index):
    kept = [i for i in range(12) if i not in (3, 10)]
    report = build(CODED, CODED_STAMP, Renamed(12), "colours", index)
    assert report and report.recaptioned == ["07"]
    assert_holds(index, Renamed(12), [*range(12)])
    before, after = (caption_codes(source, [7]) for source in (Colours(12), Renamed(12)))
    assert (before != after).any()
    remove(index, ["03", "10"])
    assert_holds(index, Renamed(12), kept)
    assert compact(index) == 2
    assert_holds(index, Renamed(12), kept)
    build(CODED, CODED_STAMP, Renamed(14), "colours", index)
    assert_holds(index, Renamed(14), [*kept, 12, 13])


def test_an_index_without_codes_says_how_to_get_them(tmp_path):
    assert build(RUNTIME, STAMP, Colours(3), "colours", tmp_path)
    with pytest.raises(BadStore) as error:
        ImageIndex.open(tmp_path, first_stage="codes")
    told = str(error.value)
    assert told.startswith(f"{tmp_path}: no codes in this index") and "\n" not in told
    assert "train heads with edje train first_stage --init MODEL, and build an index" in told


def test_a_length_that_the_codes_do_not_have_is_told_with_those_that_they_have(index):
    with pytest.raises(ValueError, match=f"--bits 32: the codes of {index} have 8, 16, 64"):
        ImageIndex.open(index, first_stage="codes", bits=32)
    with pytest.raises(ValueError, match="--bits 64: the first stage 'exact' reads embeddings"):
        ImageIndex.open(index, bits=64)


def test_a_graph_over_codes_is_stored_under_its_length(index, monkeypatch):
    pytest.importorskip("faiss")
    name, queries = "faiss-binary-hnsw", image_codes(Colours(12), [2, 5])
    opened = ImageIndex.open(index, first_stage=name)
    found = opened.images.nearest(queries, 3)
    assert found.similarities[:, 0].tolist() == [1, 1]
    assert len(opened.texts) == 12
    folder = index / "first-stage" / f"{name}-64"
    assert sorted(path.name for path in folder.iterdir()) == ["caption_codes", "codes"]

    def building_again(vectors):
        raise AssertionError("built, though it is stored")

    monkeypatch.setattr(find_first_stage(name), "start", building_again)
    again = ImageIndex.open(index, first_stage=name).images.nearest(queries, 3)
    np.testing.assert_array_equal(again.rows, found.rows)
    with pytest.raises(AssertionError, match="built, though"):
        assert ImageIndex.open(index, first_stage=name, bits=8).images
