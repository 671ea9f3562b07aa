"""Calibration: fits that find what made the data, thresholds counted by hand."""

import dataclasses

import numpy as np
import pytest

from edje_jax.config.calibration import Calibration
from edje_jax.evaluation.calibration import (
    calibrate,
    first_stage_weight,
    fit_platt_scaling,
    lowest_score,
    precision_above,
    reliability,
)
from edje_jax.evaluation.retrieval import Gallery, Retrieval, rerank
from edje_jax.evaluation.scores import calibrated_logits


def drawn(temperature: float, bias: float, count: int = 200_000, seed: int = 0):
    """Logits, and answers that are right with the probability that a calibration says."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(4.0, 6.0, count)
    chance = 1 / (1 + np.exp(-(logits / temperature + bias)))
    return logits, rng.random(count) < chance


@pytest.mark.parametrize("temperature, bias", [(1.0, 0.0), (3.0, -2.5), (0.4, 1.0)])
def test_a_fit_finds_the_temperature_and_bias_that_the_data_were_made_with(temperature, bias):
    logits, hits = drawn(temperature, bias)
    found = fit_platt_scaling(logits, hits)
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.bias == pytest.approx(bias, abs=0.06)
    other, right = drawn(temperature, bias, 50_000, seed=1)
    assert reliability(calibrated_logits(other, found), right)["ece"] < 0.01


def test_a_constant_on_all_logits_goes_into_the_bias():
    logits, hits = drawn(2.0, -1.0, 20_000)
    one, other = fit_platt_scaling(logits, hits), fit_platt_scaling(logits + 1000.0, hits)
    assert other.temperature == pytest.approx(one.temperature, rel=1e-3)
    np.testing.assert_allclose(
        calibrated_logits(logits + 1000.0, other), calibrated_logits(logits, one), atol=1e-2
    )


def test_separable_answers_make_no_certainty():
    logits = np.array([-1.0, -1.0, 1.0, 1.0])
    found = fit_platt_scaling(logits, logits > 0)
    assert 0.5 < 1 / (1 + np.exp(-calibrated_logits(logits, found)[-1])) < 0.99


def test_what_cannot_be_calibrated_is_refused():
    logits = np.linspace(-1, 1, 10)
    for hits in (np.zeros(10, bool), np.ones(10, bool)):
        with pytest.raises(ValueError, match=r"10 scored candidates are right; .* both kinds"):
            fit_platt_scaling(logits, hits)
    with pytest.raises(ValueError, match="right less often"):
        fit_platt_scaling(logits, logits < 0)


def test_a_least_score_is_the_lowest_that_is_precise_enough():
    plain = Calibration()
    logits = np.array([3.0, 2.0, 1.0, 1.0, 0.0, -1.0])
    hits = np.array([True, True, True, False, True, False])
    scores = 1 / (1 + np.exp(-logits))
    # Shares from the top: 1, 1, (3 of 4, as equal scores stay together), 4 of 5, 4 of 6.
    assert lowest_score(logits, hits, plain, 0.9, 1) == (pytest.approx(scores[1]), 1.0)
    assert lowest_score(logits, hits, plain, 0.8, 1) == (pytest.approx(scores[4]), 0.8)
    assert lowest_score(logits, hits, plain, 0.75, 1) == (pytest.approx(scores[4]), 0.8)
    assert lowest_score(logits, hits, plain, 0.6, 1) == (
        pytest.approx(scores[5]),
        pytest.approx(4 / 6),
    )
    assert lowest_score(logits, ~hits, plain, 0.9, 1) == (None, None)
    # Two results say little, and five more have too few right ones.
    assert lowest_score(logits, hits, plain, 0.9, 3) == (None, None)
    assert lowest_score(logits, hits, plain, 0.9) == (None, None)


def retrieval(noise: float, images: int = 60, seed: int = 0, constant: float = 0.0):
    """A first stage that is a little wrong, and match logits that are wrong otherwise."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), 3)
    gallery = Gallery.of([str(i) for i in range(images)], [["a", "b", "c"]] * images)
    vectors = rng.normal(size=(images, 8))
    texts = vectors[owner] + 0.6 * rng.normal(size=(len(owner), 8))
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, texts)]
    errors = noise * rng.normal(size=(len(owner), images))

    def score(text_index, image_index):
        right = owner[text_index] == image_index
        return 3.0 * right + errors[text_index, image_index] + constant

    found = rerank(gallery, *(x.astype(np.float32) for x in units), score, k=10)
    return found, gallery.caption_image


def likelihood(found: Retrieval, weight: float) -> float:
    """Mean log-likelihood of the right candidates, at the best temperature of many."""
    best = -np.inf
    for temperature in np.geomspace(0.05, 20, 60):
        total = 0.0
        for side in (found.t2i, found.i2t):
            some = side.hits.any(axis=1) & ~side.hits.all(axis=1)
            value = (side.scores + weight * side.similarities)[some].astype(float) / temperature
            odds = np.exp(value - value.max(axis=1, keepdims=True))
            total += np.log((odds * side.hits[some]).sum(axis=1) / odds.sum(axis=1)).mean()
        best = max(best, total)
    return best


def test_the_weight_makes_right_candidates_most_likely():
    noisy, _ = retrieval(noise=2.0, images=200)
    weight = first_stage_weight(noisy)
    assert weight > 1
    top = likelihood(noisy, weight)
    for other in (0.0, 0.5 * weight, 0.8 * weight, 1.25 * weight, 2 * weight):
        assert likelihood(noisy, other) < top
    plain, mixed = (noisy.at(similarity_weight=w).metrics() for w in (0.0, weight))
    for key in ("t2i", "i2t"):
        assert mixed[key]["reranked"]["R@1"] > plain[key]["reranked"]["R@1"] + 2


def test_a_first_stage_that_knows_nothing_more_has_next_to_no_weight():
    """Logits that hold the cosines already, and more."""
    found, _ = retrieval(noise=1.0, images=300)
    sides = {}
    for key in ("t2i", "i2t"):
        side = getattr(found, key)
        rng = np.random.default_rng(1)
        similarities = rng.normal(size=side.similarities.shape).astype(np.float32)
        sides[key] = dataclasses.replace(side, similarities=similarities)
    weight = first_stage_weight(dataclasses.replace(found, **sides))
    assert weight < 0.1 * found.t2i.scores.std()


def test_no_weight_where_nothing_can_be_told():
    found, _ = retrieval(noise=0.5)
    with pytest.raises(ValueError, match="right and wrong candidates"):
        first_stage_weight(found.at(k=1))
    sides = {
        key: dataclasses.replace(getattr(found, key), scores=-getattr(found, key).scores)
        for key in ("t2i", "i2t")
    }
    with pytest.raises(ValueError, match="right less often"):
        first_stage_weight(dataclasses.replace(found, **sides))


def test_a_calibration_tells_what_it_changes():
    found, owner = retrieval(noise=1.5, images=300, constant=7.0)
    calibration = calibrate(found, owner, np.arange(300), precision=0.8)
    record = calibration.fitted
    assert calibration.is_fitted and record["k"] == 10
    assert record["pairs"] == found.t2i.hits.size + found.i2t.hits.size
    for key in ("t2i", "i2t"):
        before, after = record["ece"][key]
        assert before > 0.5 and after < 0.05
        without, with_ = record["recall_at_1"][key]
        assert without == found.metrics()[key]["reranked"]["R@1"]
        again = found.at(similarity_weight=calibration.similarity_weight).metrics()
        assert with_ == again[key]["reranked"]["R@1"]
    assert record["precision_reached"] >= 0.8
    tuned = found.at(similarity_weight=calibration.similarity_weight)
    for key in ("t2i", "i2t"):
        told = precision_above(getattr(tuned, key), calibration, record["min_score"])
        assert told["recall"] == record["recall_kept"][key] > 20
    assert calibration.least_score == record["min_score"] and 0 < record["min_score"] < 1


def test_what_lies_above_a_score_counted_by_hand():
    found, _ = retrieval(noise=1.0)
    side = found.t2i
    plain = Calibration()
    for least in (0.0, 0.3, 0.9, 1.0):
        kept = 1 / (1 + np.exp(-side.combined.astype(float))) >= least
        right = kept & side.hits
        told = precision_above(side, plain, least)
        assert told["recall"] == pytest.approx(
            100 * right.any(axis=1).sum() / side.hits.any(axis=1).sum()
        )
        assert told["empty"] == pytest.approx(100 * (~kept.any(axis=1)).mean())
        share = 100 * right.sum() / kept.sum() if kept.any() else 100.0
        assert told["precision"] == pytest.approx(share)
