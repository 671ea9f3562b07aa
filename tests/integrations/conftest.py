"""Scenes that share every word, the shipped model, an index, and libraries without telemetry."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from edje_jax.cli.edje import main as edje
from edje_jax.index.image_index import ImageIndex
from edje_jax.integrations.candidates import CandidateRanker
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker

# None of the libraries shall reach for anything outside.
os.environ |= {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "LANGSMITH_TRACING": "false",
    "DO_NOT_TRACK": "1",
}
SCENES = range(34, 38)


@pytest.fixture(scope="session")
def query() -> str:
    """Text that describes scene 37 alone."""
    return "a purple square overlapping a dotted blue circle"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of scenes of the test set that share every word; the last is the right one."""
    scenes, folder = Shapes("test"), tmp_path_factory.mktemp("scenes") / "photos"
    folder.mkdir()
    for index in SCENES:
        scenes.image(index).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in SCENES]


@pytest.fixture(scope="session")
def shipped() -> Reranker:
    return Reranker.from_pretrained("shapes-demo", precision="float32")


@pytest.fixture(scope="session")
def index_path(photos: list[str]) -> str:
    """Index of the scenes; the ids are their files' names."""
    folder = Path(photos[0]).parent
    out = str(folder.parent / "photos.index")
    assert edje(["index", "build", "shapes-demo", str(folder), "--out", out]) == 0
    return out


@pytest.fixture(scope="session")
def photo_index(index_path: str) -> ImageIndex:
    return ImageIndex.open(index_path)


@pytest.fixture(scope="session")
def expected(shipped: Reranker, photos: list[str], query: str) -> list[tuple[str, float]]:
    """(file, score) in the model's order."""
    scores = shipped.predict([(query, path) for path in photos])
    return sorted(zip(photos, scores.tolist(), strict=True), key=lambda one: -one[1])


@pytest.fixture
def free_loop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable]], Any]:
    """Await a call whose ranking goes on only once the event loop has turned meanwhile."""

    def run(call: Callable[[], Awaitable]) -> Any:
        turned, rank = threading.Event(), CandidateRanker.rank

        def waiting(self, *arguments):
            assert turned.wait(5), "ranking blocks the loop"
            return rank(self, *arguments)

        async def both() -> Any:
            task = asyncio.ensure_future(call())
            await asyncio.sleep(0.05)
            turned.set()
            return await task

        monkeypatch.setattr(CandidateRanker, "rank", waiting)
        return asyncio.run(both())

    return run
