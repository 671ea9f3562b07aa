"""`edje demo`: what it refuses at once, and the page that it serves.

Covers cli/commands/demo.py.
"""

import socket
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient

from edje_jax.cli import demo_page
from edje_jax.cli.edje import main
from edje_jax.cli.program import UsageError
from edje_jax.serving.jobs import CaptionsJob
from edje_jax.serving.service import DEPTHS


def test_the_query_to_try_describes_one_scene_of_a_group_that_shares_its_words():
    scenes, words = demo_page.scenes(), set(demo_page.QUERY.split())
    assert len(scenes) == demo_page.SCENES and scenes.image(37).size == (256, 256)
    assert demo_page.QUERY in scenes.captions(37)
    for number in range(34, 37):
        assert demo_page.QUERY not in scenes.captions(number)
        assert any(words == set(caption.split()) for caption in scenes.captions(number))


@pytest.mark.parametrize("library", ["uvicorn", "edje_jax.serving.app"])
def test_a_library_that_is_missing_is_told_with_its_remedy(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library}.*; pip install 'edje-jax\[serve\]'"):
        main(["demo", "--port", "0"])


def test_a_port_in_use_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.delattr(demo_page, "scenes_service")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"port {port} of 127.0.0.1 is in use.*--port"):
            main(["demo", "--port", str(port)])


def test_searches_to_every_depth_of_the_page_are_compiled_and_captions_of_an_image():
    jobs = []
    demo_page.warm_up(Mock(run=jobs.extend))
    *searches, captions = jobs
    assert tuple(job.k for job in searches) == DEPTHS
    assert captions == CaptionsJob(image=0, k=100)


@pytest.mark.slow
def test_the_page_answers_the_query_to_try_and_leaves_no_files(tmp_path, monkeypatch, caplog):
    opened, found = [], []

    def ask(app, listening):
        with TestClient(app) as client:
            assert "<title>Search" in client.get("/").text
            found.append(client.post("/search", json={"query": demo_page.QUERY, "k": 20}).json())

    monkeypatch.setattr(demo_page, "SCENES", 40)
    monkeypatch.setattr(demo_page, "answer", ask)
    monkeypatch.setattr(demo_page, "warm_up", lambda service: opened.append(len(service.index)))
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level("INFO"):
        assert main(["demo", "--port", "0", "--open"]) == 0
    count, url = opened
    assert count == 40 and f"open {url}" in caplog.text and demo_page.QUERY in caplog.text
    assert found[0]["results"][0]["id"] == "shapes-test-000037"
    assert not list(Path(tmp_path).iterdir())
