"""Encoding on a Ray cluster of this machine leaves the files that one process leaves.

Covers system/ray_cluster.py.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edje_jax.data.bad_records import TooManyBadRecords
from edje_jax.data.images import BadImage
from edje_jax.index import build as building
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.on_ray import Opened, build_on_ray
from edje_jax.index.store import BadStore
from edje_jax.runtimes.base import Encoded
from edje_jax.system.ray_cluster import Machines, connect, machines
from tests.colour_runtime import RUNTIME, STAMP, ColourRuntime, Colours

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

IMAGES, SHARD, PART = 96, 12, 4
ACTORS, ONE = Machines(2, {"num_cpus": 1}), Machines(1, {"num_cpus": 1})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield connect("ray")
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(building, "SHARD_ROWS", SHARD)
    monkeypatch.setattr(building, "PART_ROWS", PART)


class SlowRuntime(ColourRuntime):
    """Notes its process and every image that it encodes, and takes its time."""

    def encode_pixels(self, pixel_values: np.ndarray) -> Encoded:
        with open(os.environ["NOTES"], "a") as notes:
            notes.write("".join(f"{os.getpid()}\n" for _ in pixel_values))
        time.sleep(float(os.environ["PAUSE"]) * len(pixel_values))
        return super().encode_pixels(pixel_values)


class WithBad(Colours):
    """Images of which some cannot be read."""

    def image(self, index: int):
        if index % 3 == 0:
            raise BadImage("no image")
        return super().image(index)


def open_all(notes: Path, pause: float = 0.0, kind: type = Colours, images: int = IMAGES) -> Opened:
    """Model and images; a worker's process gets the tests' sizes of parts by it, too."""
    os.environ |= {"NOTES": str(notes), "PAUSE": str(pause)}
    building.PART_ROWS = PART
    return SlowRuntime(), STAMP, kind(images)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Index that one process has built."""
    out = tmp_path_factory.mktemp("one") / "index"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "SHARD_ROWS", SHARD)
        patch.setattr(building, "PART_ROWS", PART)
        assert build(RUNTIME, STAMP, Colours(IMAGES), "colours", out)
    return out


def killed_after(notes: Path, images: int) -> int:
    """Kill the first process that encoded something, once that many images are encoded."""
    while not notes.exists() or len(noted := notes.read_text().split()) < images:
        time.sleep(0.02)
    os.kill(int(noted[0]), signal.SIGKILL)
    return int(noted[0])


def test_a_killed_worker_changes_no_byte_of_the_index(cluster, undisturbed, tmp_path):
    out, notes, shown = tmp_path / "index", tmp_path / "notes", []
    # A process that is none of Ray's has built a shard before.
    share = BuildOptions(share=(0, 8))
    assert build(RUNTIME, STAMP, Colours(IMAGES), "colours", out, share) is None
    opened = partial(open_all, notes, 0.03)
    with ThreadPoolExecutor(1) as beside:
        killed = beside.submit(killed_after, notes, 30)
        report = build_on_ray(
            cluster, ACTORS, opened, "colours", out, BuildOptions(),
            progress=lambda done, total: shown.append((done, total)),
        )  # fmt: skip
    assert report is not None and len(report.new) == IMAGES
    assert contents(out) == contents(undisturbed)
    encoded = notes.read_text().split()
    assert str(killed.result()) in encoded and len(set(encoded)) >= 2
    # The killed process's last part alone is encoded again.
    left = IMAGES - SHARD
    assert left <= len(encoded) <= left + PART
    assert shown == sorted(shown) and shown[-1] == (IMAGES, IMAGES)
    # There is nothing to do for another one, which starts no actor.
    again = build_on_ray(cluster, ACTORS, opened, "colours", out, BuildOptions())
    assert again is not None and not again.new and len(notes.read_text().split()) == len(encoded)
    assert contents(out) == contents(undisturbed)


def test_too_many_bad_images_end_the_build(cluster, tmp_path):
    opened = partial(open_all, tmp_path / "notes", 0.0, WithBad, SHARD)
    with pytest.raises(TooManyBadRecords, match=r"--max-bad 0\.1 allows"):
        build_on_ray(cluster, ONE, opened, "colours", tmp_path / "index", BuildOptions(max_bad=0.1))


def other_images_elsewhere(notes: Path, asked_by: int) -> Opened:
    """More images than where the build was asked for."""
    images = IMAGES if os.getpid() == asked_by else IMAGES + 1
    return open_all(notes, images=images)


def test_a_machine_that_sees_other_images_is_refused(cluster, tmp_path):
    opened = partial(other_images_elsewhere, tmp_path / "notes", os.getpid())
    with pytest.raises(BadStore, match="pictures, digest differ"):
        build_on_ray(cluster, ONE, opened, "colours", tmp_path / "index", BuildOptions())


def test_a_cluster_of_one_machine_without_accelerator_has_one_process(cluster):
    found = machines(cluster)
    assert found.count == 1 and found.options["num_cpus"] == 1


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    def refuse(address, **_):
        raise ConnectionError(f"no answer from {address}\nfor a long time")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    told = r"--on ray://head:1: no Ray cluster answers there \(no answer from ray://head:1\)$"
    with pytest.raises(ConnectionError, match=told):
        connect("ray://head:1")
