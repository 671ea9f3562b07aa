"""Logits of several parts joined: their formulas against probabilities computed plainly."""

import numpy as np
import pytest

from edje_jax.evaluation.combination import Background, match_and_not, match_both, pool_logits


def probability(logits):
    return 1 / (1 + np.exp(-np.asarray(logits, np.float64)))


def test_both_is_the_logit_of_a_product():
    a, b = np.array([-3.0, 0.0, 2.0, 30.0]), np.array([1.0, 0.0, 5.0, -2.0])
    np.testing.assert_allclose(
        probability(match_both(a, b)), probability(a) * probability(b), rtol=1e-12
    )
    np.testing.assert_allclose(
        match_both(match_both(a, b), a), match_both(a, match_both(b, a)), rtol=1e-12
    )
    far = match_both(np.array([800.0, -800.0]), np.array([900.0, 0.0]))
    np.testing.assert_allclose(far, [800.0, -800.0 - np.log(2)], rtol=1e-12)


def test_a_negative_part_that_is_likely_counts_as_its_probability():
    logits, negative = np.array([2.0, 1.0, -1.0]), np.array([3.0, 1.0, -2.0])
    expected = probability(logits) * (1 - probability(negative))
    np.testing.assert_allclose(probability(match_and_not(logits, negative)), expected, rtol=1e-12)


def test_a_negative_part_that_is_never_likely_counts_beside_its_median():
    logits, negative = np.zeros(5), np.array([-9.0, -15.0, -14.0, -16.0, -12.0])
    expected = 0.5 * (1 - probability(negative + 14))
    np.testing.assert_allclose(probability(match_and_not(logits, negative)), expected, rtol=1e-12)
    assert (match_and_not(logits, negative) < logits).all()
    assert match_and_not(np.zeros(0), np.zeros(0)).shape == (0,)


def test_a_pool_lies_between_its_judgements():
    a, b = np.array([-2.0, 4.0]), np.array([6.0, 0.0])
    np.testing.assert_array_equal(pool_logits(a, b, 0.0), a)
    np.testing.assert_array_equal(pool_logits(a, b, 1.0), b)
    np.testing.assert_allclose(pool_logits(a, b, 0.25), [0.0, 3.0])


def test_cosines_become_log_odds_of_two_normal_distributions():
    logits = Background(0.4, 0.1).logits(np.array([0.4, 0.55, 0.7, 1.0], np.float32))

    def density(x, mean):
        return np.exp(-((x - mean) ** 2) / (2 * 0.1**2))

    x = np.array([0.4, 0.55, 0.7, 1.0])
    np.testing.assert_allclose(logits, np.log(density(x, 0.7) / density(x, 0.4)), atol=1e-5)
    np.testing.assert_allclose(logits[1], 0, atol=1e-5)
    wide = Background(0.2, 0.4)  # Cosines of 1 lie two standard deviations above the mean
    np.testing.assert_allclose(wide.logits(np.array([0.2, 0.6, 1.0])), [-2, 0, 2], atol=1e-6)


def test_a_background_is_that_of_a_gallery():
    x = np.random.default_rng(0).normal(size=(40, 6)) + 1
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [x[i] @ x[j] for i in range(40) for j in range(i)]
    ours = Background.of(x)
    assert ours.mean == pytest.approx(np.mean(pairs)) and ours.spread == pytest.approx(
        np.std(pairs)
    )
    many = np.repeat(x, 100, axis=0)
    assert Background.of(many).mean == pytest.approx(Background.of(many[::15]).mean, abs=0.02)
    few = Background.of(x[:7])
    assert few == Background(0.0, 6**-0.5)
    assert Background.of(np.tile(x[:1], (9, 1))).spread == 0.01
