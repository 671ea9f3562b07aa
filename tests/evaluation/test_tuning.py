import numpy as np

from edje_jax.evaluation.tuning import TuneResult, on_front, pareto_front


def a_result(recall: float, speed: float, size: int) -> TuneResult:
    return TuneResult("a", 0, "updated", "int8", 10, recall, recall, size, 10 * speed, 0.0, 0.0)


def test_the_front_is_of_recall_time_and_bytes():
    results = [
        a_result(80, 100, 50),
        a_result(80, 100, 100),  # as good, and larger
        a_result(79, 101, 50),  # its time is another's but for noise
        a_result(79, 200, 100),
        a_result(90, 50, 100),
        a_result(90, 40, 100),
    ]
    assert on_front(results) == [True, False, False, True, True, False]


def test_the_front():
    points = [(3, 1), (2, 2), (1, 3), (1, 2), (2, 2), (0, 0)]
    assert pareto_front(points).tolist() == [True, True, True, False, True, False]
    rng = np.random.default_rng(0)
    many = rng.integers(0, 6, (60, 3))
    for point, best in zip(many, pareto_front(many), strict=True):
        beaten = any((o >= point).all() and (o > point).any() for o in many)
        assert best != beaten
