"""`edje demo`: the search page over built-in scenes, within half a minute of the command."""

import logging
import tempfile
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edje_jax.cli.serve import answer, check_server_is_installed, end_on_sigterm, listen, url_of
from edje_jax.data.sources.subset import Subset
from edje_jax.index.build import build
from edje_jax.index.image_index import ImageIndex
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.types import Source

if TYPE_CHECKING:
    from edje_jax.serving.service import Service

log = logging.getLogger(__name__)

SCENES = 300
"""Scenes that are indexed: the first of shapes:test, in groups of look-alikes."""
SIDE = 256
"""Pixels of a scene's side: as many as a thumbnail of an index has."""
QUERY = "a purple square overlapping a dotted blue circle"
"""Caption of scene 37; scenes 34 to 36 are described by the same words."""


def demo_page(host: str, port: int, open_browser: bool) -> None:
    """Index the scenes in a temporary folder and serve them until SIGINT or SIGTERM.

    Raises:
        UsageError: FastAPI or uvicorn is not installed, or there is no such address.
        RuntimeError: the port cannot be listened on, which is told before anything is loaded.
    """
    check_server_is_installed()
    from edje_jax.serving.app import make_app

    end_on_sigterm()
    began = time.perf_counter()
    listening = listen(host, port)
    log.info("drawing and indexing %d scenes, then compiling; well under a minute", SCENES)
    with tempfile.TemporaryDirectory(prefix="edje-demo-") as folder:
        service = scenes_service(Path(folder) / "scenes.index")
        warm_up(service)
        url = url_of(host, listening)
        log.info("ready in %.0f s: open %s", time.perf_counter() - began, url)
        log.info('try "%s"; Ctrl-C ends it', QUERY)
        if open_browser:
            webbrowser.open(url)
        answer(make_app(service), listening)


def scenes_service(folder: Path) -> "Service":
    """Index the scenes in `folder`, and open the index with the shipped model."""
    from edje_jax.serving.service import Service

    reranker = Reranker.from_pretrained("shapes-demo")
    build(reranker.runtime, reranker.stamp, scenes(), "shapes:test", folder)
    return Service(reranker, ImageIndex.open(str(folder)))


def scenes() -> Source:
    """Scenes that the page shows, large enough to be looked at."""
    whole = Shapes("test", SIDE)
    return Subset(whole, np.arange(len(whole)) < SCENES)


def warm_up(service: "Service") -> None:
    """Compile what the page asks for: searches to each of its depths, and an image's captions."""
    from edje_jax.serving.jobs import CaptionsJob, SearchJob
    from edje_jax.serving.service import DEPTHS

    for k in DEPTHS:
        service.run([SearchJob(QUERY, k)])
    service.run([CaptionsJob(0, 100)])
