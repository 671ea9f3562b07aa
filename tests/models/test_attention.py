"""Attention against its formula, with a mask and with dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.models.attention import attend

B, Q, K, H, D = 2, 3, 5, 2, 4


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = ((B, Q, H, D), (B, K, H, D), (B, K, H, D))
    query, key, value = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    return query, key, value


def weights(mask: np.ndarray) -> np.ndarray:
    """Attention probabilities, [B, H, Q, K]."""
    query, key, _ = inputs()
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(D)
    raised = np.exp(logits) * mask[:, None, None, :]
    return raised / raised.sum(-1, keepdims=True)


def run(mask: np.ndarray | None, dropout: float = 0.0, seed: int | None = None) -> np.ndarray:
    arrays = [jnp.asarray(array) for array in inputs()]
    rng = None if seed is None else jax.random.key(seed, impl="rbg")
    mask = None if mask is None else jnp.asarray(mask)
    return np.asarray(jax.jit(attend, static_argnums=4)(*arrays, mask, dropout, rng))


MASK = np.array([[True, True, False, True, False], [False, True, True, True, True]])


@pytest.mark.parametrize("dropout", [0.0, 1e-9])
@pytest.mark.parametrize("masked", [False, True])
def test_both_ways_equal_the_formula(masked, dropout):
    mask = MASK if masked else np.ones((B, K), bool)
    expected = np.einsum("bhqk,bkhd->bqhd", weights(mask), inputs()[2])
    out = run(MASK if masked else None, dropout, seed=0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)


def test_dropout_drops_that_share_of_the_probabilities_and_keeps_the_mean():
    rate, value = 0.25, inputs()[2]
    outs = jnp.stack([jnp.asarray(run(MASK, rate, seed)) for seed in range(400)])
    expected = np.einsum("bhqk,bkhd->bqhd", weights(MASK), value)
    # Each probability p becomes p / (1 - rate) or 0: its variance is p^2 * rate / (1 - rate).
    variance = np.einsum("bhqk,bkhd->bqhd", weights(MASK) ** 2, value**2) * rate / (1 - rate)
    assert (np.abs(outs.mean(0) - expected) < 5 * np.sqrt(variance / 400)).all()
    np.testing.assert_allclose(outs.var(0), variance, rtol=0.5)


def test_dropout_without_a_key_is_no_dropout():
    np.testing.assert_array_equal(run(MASK, 0.25), run(MASK))
