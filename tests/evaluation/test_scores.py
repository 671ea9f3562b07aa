"""Scores of candidates: the mix with the first stage's cosine, and probabilities.

Covers config/calibration.py.
"""

import numpy as np
import pytest

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.evaluation.scores import add_cosines, calibrated_logits, probability, sigmoid


def test_a_mix_adds_the_weighted_cosine():
    rng = np.random.default_rng(0)
    logits, cosines = rng.normal(size=(2, 30, 20)).astype(np.float32)
    ours = add_cosines(logits, cosines, 2.4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, logits + 2.4 * cosines, rtol=1e-6, atol=1e-6)
    # Without a weight logits stay to the bit.
    assert add_cosines(logits, cosines, 0.0) is logits


def test_a_probability_is_the_sigmoid_of_the_calibrated_logit():
    logits = np.array([-800.0, -1.0, 0.0, 2.5, 800.0], np.float32)
    np.testing.assert_array_equal(probability(logits, UNTUNED), sigmoid(logits))
    tuned = Calibration(temperature=2.0, bias=-1.0)
    np.testing.assert_array_equal(calibrated_logits(logits, tuned), logits / 2 - 1)
    expected = 1 / (1 + np.exp(-(logits[1:4].astype(float) / 2 - 1)))
    np.testing.assert_allclose(probability(logits, tuned)[1:4], expected, rtol=1e-6)
    assert probability(logits, tuned)[[0, -1]].tolist() == [0.0, 1.0]
    assert probability(logits, tuned).dtype == np.float32


def test_a_temperature_that_is_none_is_refused():
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            Calibration(temperature=temperature)
