"""Every example runs as its first lines say, on built-in scenes and with the shipped model."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from edje_jax.cli.edje import main as edje
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from tests.conftest import ROOT

EXAMPLES = {path.stem: path for path in (ROOT / "examples").glob("*.py")}
SCENES = range(34, 38)
"""Four scenes of the test set that share every word."""
RIGHT = 37
QUERY = "a purple square overlapping a dotted blue circle"


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The working directory, with photos/ of scenes, each with its captions in a text beside it."""
    monkeypatch.chdir(tmp_path)
    scenes, folder = Shapes("test"), tmp_path / "photos"
    folder.mkdir()
    for index in SCENES:
        scenes.image(index).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("\n".join(scenes.captions(index)))
    return tmp_path


def run(name: str, monkeypatch, *arguments: str) -> None:
    """Run an example as `python examples/NAME.py ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES[name]), *arguments])
    runpy.run_path(str(EXAMPLES[name]), run_name="__main__")


def test_every_example_is_run_here_and_told_in_the_readme():
    here, readme = Path(__file__).read_text(), (ROOT / "README.md").read_text()
    assert len(EXAMPLES) == 6
    for name, path in EXAMPLES.items():
        assert f'run("{name}"' in here and f"examples/{name}.py" in readme
        lines = path.read_text().splitlines()
        assert 20 <= len(lines) <= 40, name
        (command,) = (line for line in lines if line.startswith(f"    python examples/{name}.py "))
        assert len(shlex.split(command)) > 2


def test_search_photos(photos, monkeypatch, capsys):
    run("search_photos", monkeypatch, "photos/", QUERY)
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(rf"0\.\d+  {RIGHT}\.png  \(by embedding: \d\)", first)


def test_rerank_behind_search(photos, monkeypatch, capsys):
    run("rerank_behind_search", monkeypatch, "photos/", QUERY)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SCENES) and lines[0].endswith(f"{RIGHT}.png")


@pytest.mark.slow
def test_train_on_folder(photos, monkeypatch, capsys):
    small = ("--steps", "2", "--data.batch-size", "4", "--mesh.data", "1", "--log-every", "1")
    run("train_on_folder", monkeypatch, "photos/", "--epochs", "0", *small)
    assert "runs/photos" in capsys.readouterr().out
    assert Reranker.from_pretrained("runs/photos").config.num_tokens == 16


@pytest.mark.slow
def test_serve_and_ask(photos, monkeypatch, capsys):
    assert edje(["index", "build", "shapes-demo", "photos/", "--out", "photos.index"]) == 0
    capsys.readouterr()
    run("serve_and_ask", monkeypatch, "photos.index", QUERY)
    assert capsys.readouterr().out.splitlines()[0].endswith(f"  {RIGHT}.png")


def test_convert_to_pytorch(photos, monkeypatch, capsys):
    pytest.importorskip("torch")
    image = f"photos/{RIGHT}.png"
    run("convert_to_pytorch", monkeypatch, "shapes-demo", "converted/", image, QUERY)
    logit, probability = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    reranker = Reranker.from_pretrained("shapes-demo", precision="float32")
    expected = [reranker.predict((QUERY, image), raw_scores=raw) for raw in (True, False)]
    np.testing.assert_allclose([logit, probability], expected, atol=2e-3)


def test_search_in_gradio(photos, monkeypatch):
    """The page answers over HTTP, as it does for a browser."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    gradio = pytest.importorskip("gradio", reason="pip install gradio")
    from gradio_client import Client

    launch, addresses = gradio.Interface.launch, []

    def launch_and_go_on(page, **options):
        addresses.append(launch(page, **options, prevent_thread_lock=True)[1])

    monkeypatch.setattr(gradio.Interface, "launch", launch_and_go_on)
    run("search_in_gradio", monkeypatch, "photos/")
    try:
        found = Client(addresses[0], verbose=False).predict(QUERY)
    finally:
        gradio.close_all()
    assert len(found) == len(SCENES)
    assert Path(found[0]["image"]).stem == str(RIGHT)
    assert re.fullmatch(r"0\.\d+ \(by embedding: \d\)", found[0]["caption"])
