"""Filters over HTTP: what fits is found, and metadata are not opened where requests are answered.

Covers serving/routes/search.py.
"""

import threading
from functools import cached_property

import pytest
from fastapi.testclient import TestClient

from edje_jax import ImageIndex
from edje_jax.index.store import Store
from edje_jax.serving.app import make_app
from edje_jax.serving.partitions import PartitionedIndex, PartitionedReranker, PartitionedService
from edje_jax.serving.service import Service
from tests.serving.small_parts import ColourModel, build_in_shards

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_in_shards(tmp_path_factory.mktemp("dated") / "index", metadata=("year",))


@pytest.fixture
def openers(monkeypatch):
    """Names of the threads that opened metadata."""
    names = []
    plain = Store.metadata_kinds.func

    def kinds(store):
        names.append(threading.current_thread().name)
        return plain(store)

    noting = cached_property(kinds)
    noting.__set_name__(Store, "metadata_kinds")
    monkeypatch.setattr(Store, "metadata_kinds", noting)
    return names


def test_filters_are_checked_on_a_thread_of_their_own_and_once(folder, openers):
    with TestClient(make_app(Service(ColourModel(), ImageIndex.open(folder)))) as client:
        for _ in range(2):
            asked = {"query": "red", "k": 30, "where": "year in [2004, 2006, 2009]"}
            found = client.post("/search", json=asked).json()["results"]
            assert sorted(one["id"] for one in found) == ["04", "06"]
            refused = client.post("/captions", json={"id": "11", "where": "weight > 3"})
            assert refused.status_code == 422 and "weight" in refused.json()["detail"]
    (name,) = openers
    assert name.startswith("asyncio_")  # The default executor's, not the loop's


def test_metadata_are_open_once_a_server_is_warm(folder, openers):
    index = ImageIndex.open(folder)
    Service(ColourModel(), index).open_metadata()
    assert "metadata_kinds" in vars(index.store)
    front = PartitionedIndex(lambda _: [], 2, Store(folder))
    PartitionedService(PartitionedReranker(lambda _: [], 2, ColourModel()), front).warm()
    assert "metadata_kinds" in vars(front.store) and len(openers) == 2


def test_a_server_with_damaged_metadata_serves_the_rest(tmp_path, caplog):
    out = build_in_shards(tmp_path / "index", metadata=("year",))
    path = out / "metadata-00001.arrow"
    path.write_bytes(b"x" * path.stat().st_size)
    service = Service(ColourModel(), ImageIndex.open(out))
    service.open_metadata()
    assert "filters cannot be asked for" in caplog.text and path.name in caplog.text
    with TestClient(make_app(service)) as client:
        assert client.post("/search", json={"query": "red", "k": 3}).status_code == 200
