"""A whole protocol from Python, without the command line."""

from pathlib import Path

import pytest

from edje_jax.cli.evaluate import evaluate_model
from edje_jax.evaluate.first_stage import StageChoice
from edje_jax.evaluate.gallery import open_gallery
from edje_jax.evaluate.measure import Protocol, measure_source
from edje_jax.scenes.shapes import SPLITS
from edje_jax.search.reranker import Reranker


def test_a_protocol_gives_what_the_command_writes(trained, monkeypatch):
    monkeypatch.setitem(SPLITS, "val", 20)
    protocol = Protocol(k=5, folds=2, similarity_weights=(0.0, 1.0))
    reranker = Reranker.from_pretrained(trained)
    told = []
    found = measure_source(
        reranker.runtime,
        open_gallery("shapes:val"),
        protocol,
        reranker.calibration,
        progress=lambda *step: told.append(step),
    )
    assert found.metrics == evaluate_model(str(trained), "shapes:val", protocol)
    assert set(found.extra) == {"interval", "calibration", "folds", "similarity_weights"}
    assert found.retrieval.t2i.candidates.shape == (len(found.encoded.gallery.captions), 5)
    assert found.metrics["t2i"] == found.retrieval.t2i.metrics()
    assert {what for what, *_ in told} == {"images", "pairs"}
    assert set(found.seconds) == {"encode", "rerank"} and min(found.seconds.values()) > 0


@pytest.mark.parametrize("further", [{"folds": 2}, {"eccv": Path("captions_val2014.json")}])
def test_folds_and_eccv_are_of_exact_search(further):
    Protocol(first_stage=StageChoice("faiss-flat"))
    with pytest.raises(ValueError, match="first_stage faiss-flat: folds and eccv are measured"):
        Protocol(first_stage=StageChoice("faiss-flat"), **further)
