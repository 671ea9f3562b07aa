"""Filters of a search: only the images that are asked for are found, and k candidates remain."""

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.index import build as building
from edje_jax.index import image_index
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.maintain import compact, remove
from edje_jax.index.store import Store, verify
from edje_jax.index.where import BadWhere
from edje_jax.runtimes.base import Embedded
from edje_jax.search.cascade import search_captions, search_images
from tests.colour_runtime import CODED, CODED_STAMP, RUNTIME, STAMP, Colours

pytest.importorskip("pyarrow")


class Dated(Colours):
    """Images of a year and, every third one excepted, of a licence."""

    def metadata(self, index: int) -> dict[str, str | int]:
        licence = {0: {}, 1: {"license": "cc-by"}, 2: {"license": "cc0"}}[index % 3]
        return {"year": 2000 + index, **licence, "unasked": 1}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", 5)


KEPT = BuildOptions(metadata=("year", "license"))


@pytest.fixture
def index(tmp_path):
    """An index of twenty images with metadata, in four shards."""
    assert build(RUNTIME, STAMP, Dated(20), "dated", tmp_path, KEPT)
    return tmp_path


def found(index: ImageIndex, runtime=RUNTIME, **chosen) -> set[int]:
    """Numbers, which are ids here, of the images that a search finds."""
    ranked, _ = search_images(runtime, index, ["red"], 99, chosen=index.select(**chosen))
    assert len(ranked[0].rows) == len(set(ranked[0].rows.tolist()))
    return {int(index.store.row(int(row)).id) for row in ranked[0].rows}


def test_filters_and_ids_choose_among_the_images(index):
    opened = ImageIndex.open(index)
    assert found(opened, where="year >= 2015") == {15, 16, 17, 18, 19}
    assert found(opened, where="license == 'cc0' and not year > 2008") == {2, 5, 8}
    assert found(opened, where="license != 'cc0'") == {1, 4, 7, 10, 13, 16, 19}
    assert found(opened, ids=["03", "17", "no such id", "03"]) == {3, 17}
    assert found(opened, ids=["03", "17"], where="year < 2010") == {3}
    assert found(opened, where="id in ['03', '11'] or year == 2019") == {3, 11, 19}
    assert found(opened, ids=[]) == set() and found(opened, where="year > 3000") == set()
    assert opened.select() is None and found(opened) == set(range(20))
    with pytest.raises(ValueError, match="ids is the single string '03'; give a list"):
        opened.select(ids="03")
    with pytest.raises(ValueError, match="ids: 3 is of type int; give strings"):
        opened.select(ids=["03", 3])


@pytest.mark.parametrize("few", (0, 1 << 16), ids=("masked", "read"))
def test_k_candidates_remain_and_are_the_nearest_chosen_ones(index, monkeypatch, few):
    from edje_jax.index import covering

    monkeypatch.setattr(covering, "FEW", few)
    opened = ImageIndex.open(index)
    chosen = opened.select(where="year >= 2006")
    asked = RUNTIME.encode_texts(["red", "green and blue"])
    near, _ = opened.searched_images.candidates(asked.embeddings, asked.projections, 4, chosen)
    cosines = asked.embeddings @ np.asarray(opened.store.embeddings).T
    cosines[:, :6] = -2
    np.testing.assert_array_equal(near.rows, np.argsort(-cosines, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(near.similarities, -np.sort(-cosines, axis=1)[:, :4], atol=1e-6)


def test_a_first_stage_of_codes_is_filtered_too(tmp_path):
    assert build(CODED, CODED_STAMP, Dated(20), "dated", tmp_path, KEPT)
    opened = ImageIndex.open(tmp_path, first_stage="codes", bits=16)
    assert found(opened, CODED, where="year in [2003, 2007]") == {3, 7}
    assert (tmp_path / "first-stage" / "codes-16").is_dir()


def test_captions_of_chosen_images_are_found(index):
    opened = ImageIndex.open(index)
    tokens = np.asarray(opened.tokens[np.array([0])].columns["tokens"]).view(np.uint16)
    query = Embedded(opened.store.embeddings[[0]], np.empty((1, 0), np.float32))
    zeros = np.zeros((1, *tokens.shape[1:]), np.float32)
    ranked, _ = search_captions(
        RUNTIME, opened, zeros, query, 99, chosen=opened.select(ids=["04", "18"])
    )
    captions = [opened.store.captions[int(row)] for row in ranked[0].rows]
    assert sorted(image for image, _ in captions) == [4, 18]


def test_removed_images_and_merged_shards_keep_filters_right(index):
    remove(index, ["15", "02"])
    assert found(ImageIndex.open(index), where="year >= 2015") == {16, 17, 18, 19}
    assert compact(index) == 2 and not list(verify(index))
    opened = ImageIndex.open(index)
    assert found(opened, where="year >= 2015") == {16, 17, 18, 19}
    assert found(opened, where="license == 'cc0'") == {5, 8, 11, 14, 17}


def test_metadata_that_changes_or_is_asked_for_later_encodes_nothing_again(index, tmp_path):
    class Later(Dated):
        def metadata(self, index: int) -> dict[str, str | int]:
            return super().metadata(index) | ({"year": 1990} if index == 7 else {})

    report = build(RUNTIME, STAMP, Later(20), "dated", index)
    assert report and not report.new and not report.changed
    assert found(ImageIndex.open(index), where="year < 2000") == {7}
    plain = tmp_path / "plain"
    assert build(RUNTIME, STAMP, Dated(20), "dated", plain)
    with pytest.raises(BadWhere, match="year"):
        found(ImageIndex.open(plain), where="year < 2000")
    assert found(ImageIndex.open(plain), where="id == '11'") == {11}
    report = build(RUNTIME, STAMP, Dated(20), "dated", plain, BuildOptions(metadata=("year",)))
    assert report and not report.new and not report.changed
    assert found(ImageIndex.open(plain), where="year == 2011") == {11}
    assert Store(plain).row(11).metadata == {"year": 2011}


def test_the_last_filters_are_remembered(index, monkeypatch):
    opened, asked = ImageIndex.open(index), []
    plain = image_index.select

    def select(store, ids, where):
        asked.append(where)
        return plain(store, ids, where)

    monkeypatch.setattr(image_index, "select", select)
    for _ in range(3):
        assert found(opened, where="year == 2004") == {4}
    assert asked == ["year == 2004"]
