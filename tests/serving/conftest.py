"""Fixtures that the tests of serving share: an index and an application around it."""

import json
from pathlib import Path

import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.index.build import build
from edje_jax.scenes.shapes import Shapes
from edje_jax.serving.service import Service
from tests.serving.video_set import served_videos, video_source

IMAGES = 12


@pytest.fixture(scope="session")
def indexed(trained, tmp_path_factory) -> Path:
    """An index of captioned images, one of them with a name that wants quoting."""
    folder = tmp_path_factory.mktemp("served")
    source, records = Shapes("val"), []
    for i in range(IMAGES):
        name = "odd & <name> #?%.png" if i == 5 else f"{i}.png"
        source.image(i).save(folder / name)
        records.append({"image": name, "caption": list(source.captions(i))[:2]})
    (folder / "set.json").write_text(json.dumps(records))
    (folder / "secret.png").write_bytes((folder / "0.png").read_bytes())
    reranker = Reranker.from_pretrained(trained)
    assert build(
        reranker.runtime,
        reranker.stamp,
        BlipJson(str(folder / "set.json")),
        "blip:set",
        folder / "index",
    )
    return folder / "index"


@pytest.fixture(scope="session")
def service(trained, indexed) -> Service:
    return Service(Reranker.from_pretrained(trained), ImageIndex.open(indexed))


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> Path:
    """Videos of several kinds, as `video_set` writes them."""
    return video_source(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="session")
def video_service(video_model, video_folder) -> Service:
    return served_videos(video_model, video_folder)
