"""Captioning losses against their formula, token by token.

Covers training/losses/unconditional_captioning.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.models.captioner import LogProbabilities
from edje_jax.training.losses.captioning import captioning_loss

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LENGTHS, VALID = (5, 2, 4, 1), np.array([True, True, False, True])
PRESENT = np.arange(5)[None] < np.array(LENGTHS)[:, None]
VALUES = np.where(
    PRESENT, -np.random.default_rng(0).exponential(size=(2, 4, 5)).astype(np.float32), 0
)
FOUND = LogProbabilities(jnp.asarray(VALUES), jnp.asarray(PRESENT))


def test_it_is_the_cross_entropy_of_a_token_summed_over_the_directions():
    """Averaged over the tokens of all captions, not over captions; invalid rows do not count."""
    told = jax.jit(captioning_loss)(FOUND, jnp.asarray(VALID))
    tokens = [sum(VALUES[:, row, token]) for row in (0, 1, 3) for token in range(LENGTHS[row])]
    assert len(tokens) == 8
    np.testing.assert_allclose(told, -np.mean(tokens), rtol=1e-6)
    assert float(captioning_loss(FOUND, jnp.zeros(4, bool))) == 0.0


def test_parts_of_a_batch_add_up_to_the_whole():
    whole = captioning_loss(FOUND, jnp.asarray(VALID))
    count = jnp.sum(jnp.asarray(PRESENT & VALID[:, None]))
    parts = [
        captioning_loss(
            LogProbabilities(FOUND.values[:, rows], FOUND.present[rows]),
            jnp.asarray(VALID[rows]),
            count,
        )
        for rows in (slice(0, 2), slice(2, 4))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-6)
