"""Models that ship with the package: found by name, small, and whole wherever it is installed."""

import shutil

import numpy as np
import pytest

from edje_jax.scenes.shapes import Shapes
from edje_jax.search.reranker import Reranker
from edje_jax.weights.backbone import load_backbone
from edje_jax.weights.folder import load_model
from edje_jax.weights.hub import SHIPPED, is_hub_id, resolve

SMALL = 4_000_000
"""Bytes that the EDJE part may take, its backbone apart."""


def test_the_demo_is_small():
    files = [path for path in SHIPPED["shapes-demo"].rglob("*") if path.is_file()]
    assert 1_000_000 < sum(path.stat().st_size for path in files) < SMALL
    assert not (SHIPPED["shapes-demo"] / "backbone").exists()


def test_the_demo_ranks_scenes_that_share_every_word(tmp_path, monkeypatch):
    """From another working directory, with the shipped backbone and calibrated scores."""
    monkeypatch.chdir(tmp_path)
    reranker = Reranker.from_pretrained("shapes-demo", precision="float32")
    assert reranker.source == "shapes-demo" and reranker.calibration.is_fitted
    scenes = Shapes("test")
    images = [scenes.image(index) for index in range(34, 38)]
    texts = [scenes.captions(index)[0] for index in range(34, 38)]
    logits = reranker.score_matrix(texts, reranker.encode_images(images))
    np.testing.assert_array_equal(logits.argmax(axis=1), range(4))
    best = reranker.rank(texts[1], images)[0]
    assert best["corpus_id"] == 1 and 0 < best["score"] < 1


def test_the_demo_reads_the_shipped_backbone():
    model = load_model("shapes-demo")
    backbone = load_backbone("shapes-backbone")
    assert model.backbone.config == backbone.config
    assert model.backbone.folder.resolve() == SHIPPED["shapes-backbone"]


def test_the_demo_works_in_a_package_that_was_moved(tmp_path):
    """As pip may install it anywhere."""
    shutil.copytree(SHIPPED["shapes-demo"].parent, tmp_path / "assets")
    model = load_model(str(tmp_path / "assets" / "shapes_demo"))
    assert model.backbone.folder.resolve() == tmp_path / "assets" / "shapes_backbone"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_folder_goes_before_the_shipped_model_of_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(name, "the model") == SHIPPED[name]
    (tmp_path / name).mkdir()
    assert resolve(name, "the model").resolve() == tmp_path / name


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_name_is_no_hub_id(name):
    """A model card that the hub shows names no base model that the hub does not have."""
    assert not is_hub_id(name)
