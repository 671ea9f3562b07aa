"""Serving on a Ray cluster of this machine: answers of one process, none lost with a replica."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from edje_jax import ImageIndex
from edje_jax.index.store import Store
from edje_jax.serving.app import make_app
from edje_jax.serving.on_ray import Replicas, Spread
from edje_jax.serving.partitions import PartitionedIndex, PartitionedReranker, PartitionedService
from edje_jax.serving.service import Service
from edje_jax.system.ray_cluster import connect
from tests.serving.small_parts import ColourModel, build_in_shards, open_noting

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

SPREAD = Spread(replicas=2, partitions=2)
QUERIES = ["red", "green", "blue", "red and blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return build_in_shards(tmp_path_factory.mktemp("served") / "index")


@pytest.fixture(scope="module")
def notes(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notes") / "notes"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield connect("ray")
    ray.shutdown()


@pytest.fixture(scope="module")
def client(cluster, folder, notes) -> Iterator[TestClient]:
    """The HTTP of an index in two parts, with two replicas of each."""
    store = Store(folder)
    opened = partial(open_noting, notes, 0.1)
    with Replicas(cluster, store, opened, SPREAD, {"first_stage": "exact"}) as replicas:
        index = PartitionedIndex(replicas.ask, SPREAD.partitions, store)
        reranker = PartitionedReranker(replicas.ask, SPREAD.partitions, ColourModel())
        app = make_app(PartitionedService(reranker, index), threads=4)
        with TestClient(app) as client:
            yield client


@pytest.fixture(scope="module")
def alone(folder) -> Iterator[TestClient]:
    """The HTTP of that index in one process."""
    with TestClient(make_app(Service(ColourModel(), ImageIndex.open(folder)))) as client:
        yield client


def answer(client: TestClient, path: str, body: dict) -> dict:
    given = client.post(path, json=body)
    assert given.status_code == 200, given.text
    return {name: value for name, value in given.json().items() if name not in ("seconds", "id")}


def refuse():
    raise OSError("no model here")


def test_a_part_that_cannot_be_opened_is_told(cluster, tmp_path):
    out = build_in_shards(tmp_path / "other")
    with pytest.raises(RuntimeError, match=r"not served: .*no model here"):
        Replicas(cluster, Store(out), refuse, Spread(1, 1), {})


def test_what_is_interrupted_before_it_is_served_is_deleted(cluster, folder, monkeypatch):
    deleted = []

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ray.serve, "run_many", interrupted)
    monkeypatch.setattr(ray.serve, "delete", lambda name, **_: deleted.append(name))
    with pytest.raises(KeyboardInterrupt):
        Replicas(cluster, Store(folder), ColourModel, SPREAD, {})
    assert [name.rpartition("-")[2] for name in deleted] == ["0", "1"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/search", {"query": query, "k": k}) for query in QUERIES for k in (3, 30)),
        ("/captions", {"id": "11", "k": 8}),
        ("/rerank", {"query": "red", "documents": [{"id": "00"}, {"id": "01"}, {"id": "39"}]}),
    ],
)
def test_every_route_answers_as_one_process_does(client, alone, path, body):
    if path == "/rerank":
        body = {**body, "documents": [one["id"] for one in body["documents"]]}
    assert answer(client, path, body) == answer(alone, path, body)


def test_pages_and_images_are_served_too(client, alone):
    for path in ("/", "/healthz", "/ready", "/info", "/images/11?thumbnail=8"):
        assert client.get(path).status_code == 200
        if path != "/info":
            assert client.get(path).content == alone.get(path).content
    assert client.get("/images/none").status_code == 404


def test_no_request_is_lost_with_a_replica_and_it_is_replaced(client, alone, notes):
    expected = {query: answer(alone, "/search", {"query": query, "k": 20}) for query in QUERIES}
    notes.write_text("")
    asked = QUERIES * 12
    with ThreadPoolExecutor(24) as many:
        answers = [
            many.submit(answer, client, "/search", {"query": query, "k": 20}) for query in asked
        ]
        while len(noted := notes.read_text().split()) < 4:
            time.sleep(0.02)
        killed = noted[-1]
        assert sum(not one.done() for one in answers) >= 24
        os.kill(int(killed), signal.SIGKILL)
        assert [one.result() for one in answers] == [expected[query] for query in asked]
    before = set(notes.read_text().split())
    until, now = time.monotonic() + 60, set[str]()
    while not now - before and time.monotonic() < until:
        notes.write_text("")
        for query in QUERIES:
            answer(client, "/search", {"query": query, "k": 20})
        now |= set(notes.read_text().split())
        time.sleep(0.2)
    assert now - before and killed not in now


def test_an_index_has_a_shard_for_each_part(folder, cluster):
    with pytest.raises(ValueError, match=r"--partitions 6: .* has 5 shards"):
        Replicas(cluster, Store(folder), ColourModel, Spread(1, 6), {})
