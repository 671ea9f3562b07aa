"""First stages of several teachers are compared by one command, on tiny models."""

import dataclasses
import importlib
import json
from pathlib import Path

import jax
import pytest

from edje_jax.models.heads.first_stage import fresh_heads
from edje_jax.scenes.shapes import SPLITS
from edje_jax.weights.folder import load_model, save_model

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def teachers(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("teachers")


@pytest.fixture
def untrained(coded, tmp_path) -> Path:
    """The model folder of heads that give the backbone's embeddings."""
    model = load_model(str(coded))
    out = tmp_path / "untrained"
    out.mkdir()
    heads = fresh_heads(model.config, jax.random.key(0))
    save_model(out, dataclasses.replace(model, heads=heads), "A card.\n")
    return out


def test_one_command_compares(teachers, coded, untrained, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SPLITS, "val", 60)
    out = tmp_path / "teachers.json"
    rows = ["--row", "none", str(untrained), "--row", "both", str(coded), str(untrained)]
    teachers.main([*rows, "--data", "shapes:val", "--queries", "40", "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["runs"] == {"none": ["untrained"], "both": ["coded", "untrained"]}
    assert result["images"] == 60 and str(tmp_path) not in out.read_text()
    backbone, none, both = result["rows"]
    for direction in ("t2i", "i2t"):
        assert none[direction]["mean"] == backbone[direction]["mean"]
        assert none[direction]["less backbone"]["R@10"] == {"mean": 0, "interval": [0, 0]}
        first, second = (one["R@10"] for one in both[direction]["by seed"])
        assert second == none[direction]["mean"]["R@10"] != first
        gain = both[direction]["less none"]["R@10"]
        assert gain["mean"] == pytest.approx((first - second) / 2)
        assert gain["interval"][0] <= gain["mean"] <= gain["interval"][1]
        assert gain["interval"][0] < gain["interval"][1]
    assert "less none" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [("no heads", "no heads of the first stage"), ("backbone", "another backbone than that")],
)
def test_what_cannot_be_compared_is_told(
    teachers, coded, trained, change, message, tmp_path, capsys
):
    if change == "no heads":
        other = trained
    else:
        model, other = load_model(str(coded)), tmp_path / "other"
        params = jax.tree.map(lambda leaf: leaf + 1, model.backbone.params)
        backbone = dataclasses.replace(model.backbone, params=params, from_folder=False)
        other.mkdir()
        save_model(other, dataclasses.replace(model, backbone=backbone), "A card.\n")
    rows = ["--row", "none", str(coded), "--row", "other", str(other)]
    with pytest.raises(SystemExit):
        teachers.main([*rows, "--data", "shapes:val"])
    assert f"{other}: {message}" in " ".join(capsys.readouterr().err.split())
