"""Every loss against PyTorch's, or its formula written out; what is masked never counts.

Covers training/losses/binary_match.py, training/losses/distillation.py,
training/losses/hidden_states.py, training/losses/masked_lm.py, training/losses/masked_mean.py,
training/losses/match.py, training/losses/sigmoid.py, training/losses/softmax.py and
training/losses/text_recovery.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edje_jax.scenes.patch_naming import naming_loss
from edje_jax.training.losses.binary_match import binary_matching_loss
from edje_jax.training.losses.distillation import distillation_loss
from edje_jax.training.losses.hidden_states import hidden_states_loss
from edje_jax.training.losses.masked_lm import masked_lm_loss
from edje_jax.training.losses.masked_mean import masked_mean
from edje_jax.training.losses.match import matching_loss
from edje_jax.training.losses.sigmoid import sigmoid_loss
from edje_jax.training.losses.softmax import softmax_loss
from edje_jax.training.losses.text_recovery import text_recovery_loss

pytestmark = pytest.mark.usefixtures("strict_dtypes")

B, K, V, E, N, C = 6, 3, 11, 8, 5, 4
VALID = np.array([True, True, False, True, False, True])
GARBAGE = np.float32(1e9)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return (3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def garbled(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Garbage in the rows that a mask leaves out."""
    return np.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, GARBAGE)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def call(loss, *arrays) -> float:
    out = jax.jit(loss)(*(jnp.asarray(array) for array in arrays))
    assert out.shape == () and out.dtype == jnp.float32
    return float(out)


def test_masked_mean():
    values = normal(B, K)
    mask = np.random.default_rng(1).random((B, K)) < 0.5
    assert 0 < mask.sum() < mask.size
    expected = values[mask].mean()
    spoiled = np.where(mask, values, np.nan)
    assert call(masked_mean, spoiled, mask) == pytest.approx(expected, rel=1e-6)
    assert call(masked_mean, spoiled, np.zeros_like(mask)) == 0.0


def test_matching_loss_is_cross_entropy_with_the_positive_first():
    positive, negatives = normal(B), normal(B, K, seed=1)
    logits = tensor(np.column_stack([positive, negatives])[VALID])
    expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).item()
    usable = np.ones((B, K), bool)
    rows = garbled(positive, VALID), garbled(negatives, VALID)
    assert call(matching_loss, *rows, usable, VALID) == pytest.approx(expected, rel=1e-6)


def test_matching_loss_leaves_out_negatives_that_do_not_exist():
    positive, negatives = normal(B), normal(B, K, seed=1)
    usable = np.arange(K) < np.array([3, 2, 1, 0, 3, 1])[:, None]
    per_row = [
        np.logaddexp.reduce([positive[i], *negatives[i][usable[i]]]) - positive[i]
        for i in np.flatnonzero(VALID)
    ]
    # A row without any negative has nothing to tell apart, but it is a row.
    assert per_row[2] == 0.0
    arguments = positive, garbled(negatives, usable), usable, VALID
    assert call(matching_loss, *arguments) == pytest.approx(np.mean(per_row), rel=1e-6)


@pytest.mark.parametrize("is_match", [True, False])
def test_binary_matching_loss_is_binary_cross_entropy(is_match):
    logits = np.random.default_rng(0).normal(0, 3, (4, 3)).astype(np.float32)
    mask = np.random.default_rng(1).random((4, 3)) < 0.6
    target = torch.full((4, 3), float(is_match))
    each = F.binary_cross_entropy_with_logits(torch.tensor(logits), target, reduction="none")
    ours = binary_matching_loss(jnp.asarray(logits), is_match, jnp.asarray(mask))
    np.testing.assert_allclose(ours, each.numpy()[mask].mean(), rtol=1e-6)
    # A part's share of the mean over a larger whole.
    share = binary_matching_loss(jnp.asarray(logits), is_match, jnp.asarray(mask), jnp.int32(20))
    np.testing.assert_allclose(share, each.numpy()[mask].sum() / 20, rtol=1e-6)
    extreme = jnp.asarray([1e4, -1e4])
    values = [binary_matching_loss(extreme[i : i + 1], is_match, jnp.ones(1, bool)) for i in (0, 1)]
    assert sorted(map(float, values)) == [0.0, 1e4]


def test_distillation_loss_is_binary_cross_entropy_with_soft_labels():
    student, teacher = normal(B, K), normal(B, K, seed=1)
    expected = F.binary_cross_entropy_with_logits(
        tensor(student[VALID]), torch.sigmoid(tensor(teacher[VALID]))
    ).item()
    mask = np.repeat(VALID[:, None], K, axis=1)
    rows = garbled(student, VALID), garbled(teacher, VALID)
    assert call(distillation_loss, *rows, mask) == pytest.approx(expected, rel=1e-6)
    flat = (array.ravel() for array in (*rows, mask))
    assert call(distillation_loss, *flat) == pytest.approx(expected, rel=1e-6)


def test_distillation_loss_survives_large_logits():
    student, teacher = np.float32([200, -200, 200]), np.float32([200, -200, -200])
    assert call(distillation_loss, student, teacher, np.ones(3, bool)) == pytest.approx(200 / 3)


def test_hidden_states_loss_is_a_mean_over_captions_of_means_over_their_rows():
    """Captions of 0 to 5 rows count alike, but for one without any; what pads them does not."""
    student, teacher = normal(B, 2, 5, 3), normal(B, 2, 5, 3, seed=1)
    there = np.arange(5) < np.array([5, 2, 1, 0, 3, 4])[:, None]
    expected = np.mean(
        [
            np.mean(np.square((a - b)[:, mask]))
            for a, b, mask in zip(student, teacher, there, strict=True)
            if mask.any()
        ]
    )
    rows = np.repeat(there[:, None, :, None], 2, axis=1)
    spoiled = np.where(rows, student, 1e6)
    assert call(hidden_states_loss, spoiled, teacher, there) == pytest.approx(expected, rel=1e-6)
    assert call(hidden_states_loss, student, teacher, np.zeros_like(there)) == 0.0


def test_masked_lm_loss_is_cross_entropy_over_the_masked():
    logits = normal(B, V)
    labels = np.random.default_rng(1).integers(0, V, B).astype(np.int32)
    expected = F.cross_entropy(tensor(logits[VALID]), tensor(labels[VALID]).long()).item()
    rows = garbled(logits, VALID)
    assert call(masked_lm_loss, rows, labels, VALID) == pytest.approx(expected, rel=1e-6)
    assert call(masked_lm_loss, rows, labels, np.zeros(B, bool)) == 0.0


def test_text_recovery_loss_is_one_minus_cosine():
    predicted, target = normal(B, E), normal(B, E, seed=1)
    cosine = F.cosine_similarity(tensor(predicted[VALID]), tensor(target[VALID]))
    rows = garbled(predicted, VALID), garbled(target, VALID)
    ours = call(text_recovery_loss, *rows, VALID)
    assert ours == pytest.approx(1 - cosine.mean().item(), rel=1e-5)
    assert call(text_recovery_loss, target, 5 * target, VALID) == pytest.approx(0, abs=1e-6)
    # A row of zeros has no direction: cosine 0.
    assert call(text_recovery_loss, predicted, 0 * target, VALID) == 1.0


def test_sigmoid_loss_sums_over_images_and_averages_over_texts():
    logits = normal(B, B)
    positive = np.eye(B, dtype=bool)
    positive[0, 3] = positive[3, 0] = True
    total = 0.0
    for i in np.flatnonzero(VALID):
        for j in np.flatnonzero(VALID):
            total -= np.log(1 / (1 + np.exp(-(1 if positive[i, j] else -1) * logits[i, j])))
    pairs = VALID[:, None] & VALID
    ours = call(sigmoid_loss, np.where(pairs, logits, GARBAGE), positive, VALID)
    assert ours == pytest.approx(total / VALID.sum(), rel=1e-5)


def test_softmax_loss_leaves_other_positives_out_of_both_directions():
    logits = normal(B, B)
    positive = np.eye(B, dtype=bool)
    positive[0, 3] = positive[3, 0] = True
    total = 0.0
    for i in np.flatnonzero(VALID):
        rivals = [j for j in np.flatnonzero(VALID) if j == i or not positive[i, j]]
        for own, others in ((logits[i, i], logits[i, rivals]), (logits[i, i], logits[rivals, i])):
            total += np.log(np.exp(others).sum()) - own
    pairs = VALID[:, None] & VALID
    ours = call(softmax_loss, np.where(pairs, logits, GARBAGE), positive, VALID)
    assert ours == pytest.approx(total / VALID.sum() / 2, rel=1e-5)


def test_naming_loss_counts_background_a_tenth():
    logits = normal(B, N, C)
    labels = np.random.default_rng(1).integers(0, C, (B, N)).astype(np.int32)
    assert (labels == 0).any() and (labels[VALID] > 0).any()
    weight = torch.tensor([0.1, 1.0, 1.0, 1.0])
    expected = F.cross_entropy(
        tensor(logits[VALID]).flatten(0, 1), tensor(labels[VALID]).flatten().long(), weight
    ).item()
    ours = call(naming_loss, garbled(logits, VALID), labels, VALID)
    assert ours == pytest.approx(expected, rel=1e-5)


DIFFERENTIATED = {
    "matching": lambda x, v, m: matching_loss(x[:, 0], x[:, :K], m, v),
    "matching, nothing usable": lambda x, v, m: matching_loss(x[:, 0], x[:, :K], ~m, v),
    "distillation": lambda x, v, m: distillation_loss(x[:, :K], jnp.ones((B, K)), m),
    "masked LM": lambda x, v, m: masked_lm_loss(x, jnp.arange(B), v),
    "text recovery": lambda x, v, m: text_recovery_loss(x, jnp.ones(x.shape), v),
    "sigmoid": lambda x, v, m: sigmoid_loss(x[:, :B], jnp.eye(B, dtype=bool), v),
    "naming": lambda x, v, m: naming_loss(
        x.reshape(B, N, C), jnp.arange(B * N).reshape(B, N) % C, v
    ),
}


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_masked_rows_have_no_gradient_and_the_others_a_finite_one(name):
    usable = np.repeat(VALID[:, None], K, axis=1)
    arrays = (jnp.asarray(array) for array in (normal(B, N * C), VALID, usable))
    gradient = np.asarray(jax.jit(jax.grad(DIFFERENTIATED[name]))(*arrays))
    assert np.isfinite(gradient).all()
    assert not gradient[~VALID].any()
    # With no negative to tell it from, a positive has nothing to learn either.
    assert gradient[VALID].any(axis=1).all() != ("nothing usable" in name)
