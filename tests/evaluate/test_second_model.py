"""A second model in an evaluation, as `eval.py --then` has it, and the scores of a captioner."""

import dataclasses
import json

import numpy as np
import pytest

import eval as program
from edje_jax.cli.eval_options import Options, check
from edje_jax.cli.evaluate import SecondChoice, evaluate_model
from edje_jax.cli.program import UsageError
from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluate.gallery import open_gallery
from edje_jax.evaluate.measure import Protocol, measure_source, with_caption_score
from edje_jax.evaluate.second_model import SecondModel
from edje_jax.scenes.shapes import SPLITS
from edje_jax.search.reranker import Reranker


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setitem(SPLITS, "val", 12)
    monkeypatch.setitem(SPLITS, "test", 10)


def test_a_second_model_reranks_what_the_first_has_ranked(trained, captioner):
    """Weight 1 with all candidates is the captioner alone; weight 0 is the first model."""
    source = open_gallery("shapes:val")
    first, second = (Reranker.from_pretrained(name) for name in (trained, captioner))
    found = measure_source(first.runtime, source, Protocol(k=6))
    alone = measure_source(second.runtime, source, Protocol(k=6))
    ranked = SecondModel(second.runtime, second.calibration, 6).rank(source, found)
    for key in ("t2i", "i2t"):
        side = getattr(ranked, key)
        np.testing.assert_array_equal(side.ranks(0.0), getattr(found.retrieval, key).reranked_rank)
        np.testing.assert_array_equal(side.ranks(1.0), getattr(alone.retrieval, key).reranked_rank)
    # With its own cosine mixed in, and calibrated.
    tuned = Calibration(similarity_weight=3.0, temperature=0.5, bias=1.0)
    mixed = SecondModel(second.runtime, tuned, 6).rank(source, found).t2i
    weighted = alone.retrieval.at(similarity_weight=3.0).t2i
    np.testing.assert_array_equal(mixed.ranks(1.0), weighted.reranked_rank)


def test_metrics_tell_of_the_second_model(trained, captioner, tmp_path, capsys):
    arguments = [str(trained), "--data", "shapes:val", "--k", "8", "--then", str(captioner)]
    options = ["--then-k", "4", "--choose-on", "shapes:test", "--out", str(tmp_path)]
    assert program.main([*arguments, *options]) == 0
    then = json.loads((tmp_path / "metrics.json").read_text())["then"]
    assert then["model"] == str(captioner) and then["chosen_on"] == "shapes:test"
    assert then["calibrated"] is False
    assert then["k"] == 4 and 0 <= then["weight"] <= 1
    same = SecondChoice(str(captioner), 4, then["weight"])
    again = evaluate_model(str(trained), "shapes:val", Protocol(k=8), then=same)["then"]
    assert again == then | {"chosen_on": None} and again["caption_score"] == "pmi"
    other = dataclasses.replace(same, caption_score="sum")
    other = evaluate_model(str(trained), "shapes:val", Protocol(k=8), then=other)["then"]
    assert other["caption_score"] == "sum" and other["i2t"] != again["i2t"]
    told = " ".join(capsys.readouterr().out.split())
    assert f"{then['t2i']['R@1']:.2f}" in told and "reranks the best 4" in told


@pytest.mark.parametrize("score", ["sum", "mean", "pmi"])
def test_another_score_of_a_captioner(captioner, score):
    """Captions of one image are ordered otherwise, images of one caption are not."""
    reranker, source = Reranker.from_pretrained(captioner), open_gallery("shapes:val")
    tuned = Calibration(temperature=3.0)
    protocol = Protocol(k=12, caption_score=score)
    found = measure_source(reranker.runtime, source, protocol, tuned)
    assert found.metrics["caption_score"] == score
    assert found.calibration == (tuned if score == "pmi" else UNTUNED)
    own = measure_source(reranker.runtime, source, Protocol(k=12), tuned)
    np.testing.assert_array_equal(found.retrieval.t2i.order, own.retrieval.t2i.order)
    other = with_caption_score(reranker.runtime, score)
    tokens = found.encoded.tokens[:1]
    (caption, *_) = found.encoded.gallery.captions
    ids, zero = other.joint_tokenizer([caption]), np.zeros(1, int)
    place = int(np.flatnonzero(found.retrieval.t2i.candidates[0] == 0)[0])
    assert found.retrieval.t2i.scores[0, place] == pytest.approx(
        other.score_pairs(ids, tokens, zero, zero)[0], rel=1e-4, abs=1e-3
    )
    if score != "pmi":
        assert found.retrieval.t2i.scores.max() < 0


def test_a_model_without_a_choice_of_scores_says_so(trained):
    runtime = Reranker.from_pretrained(trained).runtime
    with pytest.raises(ValueError, match=r"caption_score sum: only a captioner .* kind edje"):
        measure_source(runtime, open_gallery("shapes:val"), Protocol(caption_score="sum"))
    with pytest.raises(ValueError, match=f"--caption-score sum: {trained} is no captioner"):
        evaluate_model(str(trained), "shapes:val", Protocol(caption_score="sum"))
    then = SecondChoice(str(trained), caption_score="sum")
    with pytest.raises(ValueError, match=f"--then-caption-score sum: {trained} is no captioner"):
        evaluate_model(str(trained), "shapes:val", then=then)


def test_models_that_read_other_images_are_not_compared(trained, captioner):
    source = open_gallery("shapes:val")
    found = measure_source(Reranker.from_pretrained(trained).runtime, source, Protocol(k=2))
    encoded = dataclasses.replace(found.encoded, record=found.encoded.record[:-1])
    fewer = dataclasses.replace(found, encoded=encoded)
    with pytest.raises(ValueError, match="could read 12 of the images and the first 11"):
        SecondModel(Reranker.from_pretrained(captioner).runtime).rank(source, fewer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"then_k": 5, "choose_on": "shapes:val"}, "--then-k, --choose-on: .* give --then"),
        ({"then": "b", "folds": 2}, "--folds takes no --then"),
        ({"then": "b", "then_weight": 0.5, "choose_on": "shapes:val"}, "take one"),
    ],
)
def test_options_that_do_not_go_together(given, message):
    with pytest.raises(UsageError, match=message):
        check(Options(model="a", data="shapes:val", **given))
