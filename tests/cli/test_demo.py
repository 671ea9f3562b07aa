"""`make demo`: a model that is there is not trained again, and a search is shown."""

import shutil
from pathlib import Path

import pytest

from edje_jax.cli import demo
from edje_jax.cli.program import UsageError
from edje_jax.scenes.shapes import Shapes
from edje_jax.weights.hub import SHIPPED


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    """Workdir of a demo whose training is over."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED["shapes-demo"], demo.WORKDIR / "model")
    shutil.copytree(SHIPPED["shapes-backbone"], demo.WORKDIR / "shapes_backbone")
    return demo.WORKDIR


def test_a_trained_model_is_calibrated_and_evaluated(workdir, monkeypatch):
    done, model = [], str(workdir / "model")
    demo.FEATURES.mkdir()
    monkeypatch.setattr(demo, "run", lambda *_: done.append("trained"))
    monkeypatch.setattr(demo, "tune", lambda models, data, _, save: done.append((models, save)))
    monkeypatch.setattr(demo, "evaluate_model", lambda *given, out: done.append((*given, out)))
    monkeypatch.setattr(demo, "show_search", lambda: done.append("shown"))
    assert demo.main([]) == 0
    assert done == [([model], True), (model, "shapes:test", workdir / "eval"), "shown"]
    assert not demo.FEATURES.exists()


@pytest.mark.parametrize("is_done", [True, False])
def test_a_training_that_was_stopped_is_not_evaluated(is_done, tmp_path, monkeypatch):
    done = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "EdjeTask", lambda config, workdir: config)
    monkeypatch.setattr(demo, "run", lambda *_: is_done)
    for name in ("tune", "evaluate_model", "show_search"):
        monkeypatch.setattr(demo, name, lambda *_, name=name, **__: done.append(name))
    assert demo.main([]) == 0
    assert done == (["tune", "evaluate_model", "show_search"] if is_done else [])


@pytest.mark.slow
def test_the_image_of_the_search_is_marked_and_ranks_first(workdir, capsys):
    demo.show_search(images=20)
    told = capsys.readouterr().out
    name = f"{Shapes('test').image_id(demo.IMAGE)} *"
    first = next(line for line in told.splitlines() if line.split()[:1] == ["│"] and "│ 1 " in line)
    assert first.split("│")[3].strip() == name


def test_it_takes_no_arguments():
    with pytest.raises(UsageError, match="takes no arguments"):
        demo.main(["--steps", "2"])
