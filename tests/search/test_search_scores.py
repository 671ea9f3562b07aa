"""Scores of a search: the first stage mixed in, calibrated, and cut at a least score.

Covers search/cascade.py.
"""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edje_jax import ImageIndex, Reranker
from edje_jax.cli import edje
from edje_jax.config.calibration import Calibration
from edje_jax.data.sources.blip_json import BlipJson
from edje_jax.evaluation.scores import add_cosines, sigmoid
from edje_jax.index.build import build
from edje_jax.scenes.shapes import Shapes
from edje_jax.search.cascade import search_images
from edje_jax.weights.calibration import write_calibration

IMAGES = 20
QUERIES = ["a red circle left of a blue square", "a small striped green star"]


@pytest.fixture(scope="module")
def reranker(trained) -> Reranker:
    return Reranker.from_pretrained(trained)


@pytest.fixture(scope="module")
def folder(reranker, tmp_path_factory) -> Path:
    """An index of captioned scenes."""
    folder, scenes = tmp_path_factory.mktemp("scenes"), Shapes("val")
    for i in range(IMAGES):
        scenes.image(i).save(folder / f"{i}.png")
    records = [{"image": f"{i}.png", "caption": list(scenes.captions(i))} for i in range(IMAGES)]
    (folder / "set.json").write_text(json.dumps(records))
    source = BlipJson(str(folder / "set.json"))
    assert build(reranker.runtime, reranker.stamp, source, "blip:set", folder / "index")
    return folder


@pytest.fixture(scope="module")
def index(folder) -> ImageIndex:
    return ImageIndex.open(folder / "index")


def with_calibration(reranker: Reranker, calibration: Calibration) -> Reranker:
    changed = copy.copy(reranker)
    changed.calibration = calibration
    return changed


def test_results_stand_in_the_order_of_the_mix(reranker, index):
    calibration = Calibration(1.5, 2.0, -0.5)
    found, _ = search_images(reranker.runtime, index, QUERIES, 12)
    tuned, _ = search_images(reranker.runtime, index, QUERIES, 12, calibration)
    for plain, ours in zip(found, tuned, strict=True):
        base = np.argsort(plain.base_ranks)
        rows, logits, cosines = (
            values[base] for values in (plain.rows, plain.logits, plain.similarities)
        )
        combined = add_cosines(logits, cosines, 1.5)
        order = np.argsort(-combined, kind="stable")
        np.testing.assert_array_equal(ours.rows, rows[order])
        np.testing.assert_array_equal(ours.logits, logits[order])
        np.testing.assert_array_equal(ours.base_ranks, order + 1)
        expected = sigmoid((combined[order] / 2 - 0.5).astype(np.float32))
        np.testing.assert_allclose(ours.scores, expected, atol=1e-6)
        assert (np.diff(ours.scores) <= 0).all()
        # Without a calibration: the sigmoid of the logit, in its order.
        np.testing.assert_array_equal(plain.scores, sigmoid(plain.logits))
        assert (ours.rows != plain.rows).any()


@pytest.mark.parametrize("method", ["search", "search_captions"])
def test_a_least_score_cuts_the_list(reranker, index, folder, method):
    asked = QUERIES[:1] if method == "search" else [folder / "0.png"]
    ask = getattr(with_calibration(reranker, Calibration(0.0, 3.0, 0.2)), method)
    everything = ask(index, asked, k=10, top_k=10)[0]
    least = everything[4]["score"]
    kept = ask(index, asked, k=10, top_k=10, min_score=least)[0]
    assert kept == [one for one in everything if one["score"] >= least] and 5 <= len(kept) < 10
    assert ask(index, asked, k=10, top_k=3, min_score=least)[0] == everything[:3]
    assert ask(index, asked, k=10, top_k=10, min_score=1.0)[0] == []
    assert ask(index, asked, k=10, top_k=10, min_score=0.0)[0] == everything
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="scores lie from 0 to 1"):
            ask(index, asked, min_score=wrong)


def test_the_command_says_that_nothing_matches(reranker, index, folder, tmp_path, capsys):
    arguments = ["search", str(folder / "index"), QUERIES[0], "--k", "10"]
    assert edje.main([*arguments, "--min-score", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    edje.main([*arguments, "--min-score", "1"])
    assert "nothing reaches a score of 1" in capsys.readouterr().out
    edje.main([*arguments, "--min-score", "0", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == 10
    with pytest.raises(Exception, match=r"--min-score 2.0: scores lie from 0 to 1"):
        edje.main([*arguments, "--min-score", "2"])


def test_an_index_stays_valid_when_its_model_is_calibrated(trained, index, tmp_path):
    model = shutil.copytree(trained / "model", tmp_path / "model")
    write_calibration(model, Calibration(0.7, 2.0, -1.0, {"data": "here"}))
    tuned = Reranker.from_pretrained(model)
    assert tuned.calibration.similarity_weight == 0.7
    assert len(tuned.search(index, QUERIES, k=10)[0]) == 10
