"""Listwise distillation against the formulas, written in NumPy list by list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.training.losses import listwise

TEACHER = np.array(
    [[30.0, 10.0, 20.0, -5.0], [1.0, 2.0, 3.0, 99.0], [4.0, 1.0, 1.0, 1.0], [7.0, 1.0, 1.0, 1.0]],
    np.float32,
)
STUDENT = np.array(
    [[1.0, 0.5, 2.0, 0.0], [0.3, -1.0, 0.2, 50.0], [2.0, 9.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]],
    np.float32,
)
USABLE = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
LISTS = ((0, 4), (1, 3))
"""(row, candidates) of the lists that have something to teach."""
ARRAYS = teacher, student, usable = tuple(map(jnp.asarray, (TEACHER, STUDENT, USABLE)))

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - logits.max())
    return powers / powers.sum()


def negative_log_likelihood(order: np.ndarray, student: np.ndarray) -> float:
    """Each choice of the order, among all that are left."""
    left, total = list(range(len(order))), 0.0
    for chosen in order[:-1]:
        total -= np.log(softmax(student[left])[left.index(chosen)])
        left.remove(chosen)
    return total


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_the_cross_entropy_is_that_of_the_softmaxes_of_usable_candidates(temperature: float):
    expected = np.mean(
        [
            -np.sum(softmax(TEACHER[row, :n] / temperature) * np.log(softmax(STUDENT[row, :n])))
            for row, n in LISTS
        ]
    )
    found = listwise.softmax_cross_entropy(*ARRAYS, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_order_is_as_likely_as_its_choices_one_after_the_other():
    expected = np.mean(
        [
            negative_log_likelihood(np.argsort(-TEACHER[row, :n]), STUDENT[row, :n]) / (n - 1)
            for row, n in LISTS
        ]
    )
    found = listwise.order_likelihood(*ARRAYS)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_order_alone_counts_in_the_order_likelihood():
    peaked = listwise.order_likelihood(teacher * 100, student, usable)
    np.testing.assert_array_equal(peaked, listwise.order_likelihood(*ARRAYS))


def test_the_entropy_goes_from_one_candidate_to_all_of_them():
    assert float(listwise.teacher_entropy(teacher, usable, 0.1)) < 1e-3
    even = float(listwise.teacher_entropy(teacher, usable, 1e6))
    np.testing.assert_allclose(even, (np.log(4) + np.log(3)) / 2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "order"])
def test_gradients_are_finite_and_nothing_for_what_is_not_usable(kind: str):
    def loss(logits):
        if kind == "order":
            return listwise.order_likelihood(teacher, logits, usable)
        return listwise.softmax_cross_entropy(teacher, logits, usable, 2.0)

    gradient = np.asarray(jax.grad(loss)(student))
    assert np.isfinite(gradient).all()
    teaches = USABLE & (USABLE.sum(axis=1, keepdims=True) > 1)
    assert (gradient[~teaches] == 0).all()
    assert (gradient[0] != 0).all()


def test_a_student_that_agrees_with_the_teacher_has_nothing_to_learn():
    gradient = jax.grad(
        lambda logits: listwise.softmax_cross_entropy(teacher, logits, usable, 4.0)
    )(teacher / 4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_a_batch_without_a_list_to_learn_from_costs_nothing():
    nobody = jnp.zeros_like(usable)
    assert float(listwise.softmax_cross_entropy(teacher, student, nobody, 1.0)) == 0.0
    assert float(listwise.order_likelihood(teacher, student, nobody)) == 0.0


def test_lists_are_the_own_pair_before_its_negatives_of_either_kind():
    own, images, captions = jnp.arange(2), jnp.array([[2, 3], [4, 5]]), jnp.array([[6, 7], [8, 9]])
    found = listwise.lists_of(own, images, captions)
    assert found.tolist() == [[0, 2, 3], [1, 4, 5], [0, 6, 7], [1, 8, 9]]


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "teacher_entropy"])
def test_parts_of_the_lists_add_up_to_all_of_them(loss):
    arrays = ARRAYS if loss == "softmax_cross_entropy" else (teacher, usable)
    function, count = getattr(listwise, loss), jnp.sum(listwise.teaches(usable))
    assert int(count) == len(LISTS)
    parts = [function(*(x[rows] for x in arrays), 2.0, count) for rows in (slice(1), slice(1, 4))]
    np.testing.assert_allclose(sum(parts), function(*arrays, 2.0), rtol=1e-6)
