"""Options of the commands that a Ray cluster can do the work of, as far as they need no cluster.

Covers cli/serve_on_ray.py.
"""

import sys
from unittest.mock import Mock

import pytest
import tyro

from edje_jax.cli import serve_on_ray
from edje_jax.cli.cluster import connect_to
from edje_jax.cli.commands.index import IndexBuild
from edje_jax.cli.commands.search import Serve
from edje_jax.cli.program import UsageError
from edje_jax.cli.serve import serve


def build(*arguments: str) -> None:
    given = ["no/model", "no/images", "--out", "no/index", *arguments]
    tyro.cli(IndexBuild, args=given).run()


def test_a_cluster_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="--on slurm: give ray, or ray://HOST:PORT"):
        connect_to("slurm")


def test_a_cluster_builds_all_shares():
    with pytest.raises(UsageError, match="--on ray --shard 0/4: a cluster builds all shares"):
        build("--on", "ray", "--shard", "0/4")


@pytest.mark.parametrize("command", ["build", "serve"])
def test_without_ray_the_command_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'edje-jax\[ray\]'"):
        if command == "build":
            build("--on", "ray")
        else:
            serve(tyro.cli(Serve, args=["no/such.index", "--port", "0", "--on", "ray"]))


def test_parts_cannot_be_searched_by_milvus():
    given = ["no/such.index", "--port", "0", "--on", "ray", "--first-stage", "milvus:photos.db"]
    told = "--first-stage milvus:photos.db --on ray: .* serve without --on, or choose another"
    with pytest.raises(UsageError, match=told):
        serve(tyro.cli(Serve, args=given))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--partitions", "2"), "--partitions 2: goes with --on ray"),
        (("--replicas", "2"), "--replicas 2: goes with --on ray"),
        (("--replicas", "0", "--on", "ray"), "--replicas 0: has to be more than 0"),
    ],
)
def test_parts_and_replicas_are_of_a_cluster(arguments, told):
    with pytest.raises(UsageError, match=told):
        serve(tyro.cli(Serve, args=["no/such.index", *arguments]))


def test_processes_of_a_cluster_get_runtime_and_precision(tmp_path, monkeypatch):
    opened = {}

    class Started(Exception):
        pass

    def replicas(ray, store, open_model, *_):
        opened.update(open_model.keywords)
        raise Started

    model = type("Model", (), {"stamp": {}, "source": "model"})
    monkeypatch.setattr(serve_on_ray, "connect_to", lambda _: None)
    monkeypatch.setattr(serve_on_ray, "Store", lambda files: Mock(folder=tmp_path))
    monkeypatch.setattr(serve_on_ray, "check_model", lambda *_: None)
    monkeypatch.setattr(serve_on_ray, "model_of", lambda *_: model)
    monkeypatch.setattr(serve_on_ray, "Replicas", replicas)
    given = ["--port", "0", "--on", "ray", "--runtime", "onnx", "--precision", "int8"]
    with pytest.raises(Started):
        serve(tyro.cli(Serve, args=[str(tmp_path), *given]))
    assert opened == {"runtime": "onnx", "precision": "int8"}
