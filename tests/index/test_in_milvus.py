"""An index whose first stage is in Milvus: the answers, filters, changes, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.in_milvus import sync_to_milvus
from edje_jax.index.maintain import compact, remove
from edje_jax.index.store import Store
from edje_jax.search.cascade import search_images
from tests.colour_runtime import CODED, CODED_STAMP, Colours

pytest.importorskip("pymilvus")

KEPT = BuildOptions(metadata=("year",))


class Dated(Colours):
    """Images of a year."""

    def metadata(self, index: int) -> dict[str, int]:
        return {"year": 2000 + index}


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
