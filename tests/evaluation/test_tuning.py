import dataclasses

import numpy as np

from edje_jax.evaluation.tuning import TuneResult, on_front, pareto_front


def a_result(recall: float, speed: float, size: int) -> TuneResult:
    return TuneResult(
        "a", 0, "updated", "int8", "exact", 10, recall, recall, size, 24, 10 * speed, 0.0, 0.0
    )


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


def test_bytes_of_tokens_and_of_the_first_stage_count_together():
    exact = a_result(80, 100, 1000)
    codes = dataclasses.replace(exact, first_stage="codes-64", first_stage_bytes=8)
    worse = dataclasses.replace(codes, first_stage="codes-128", first_stage_bytes=16, t2i=79)
    smaller = dataclasses.replace(exact, bytes_per_picture=984)  # 24 more of embeddings
    assert on_front([exact, codes, worse]) == [False, True, False]
    assert on_front([smaller, codes]) == [True, True]


def test_the_front():
    points = [(3, 1), (2, 2), (1, 3), (1, 2), (2, 2), (0, 0)]
    assert pareto_front(points).tolist() == [True, True, True, False, True, False]
    rng = np.random.default_rng(0)
    many = rng.integers(0, 6, (60, 3))
    for point, best in zip(many, pareto_front(many), strict=True):
        beaten = any((o >= point).all() and (o > point).any() for o in many)
        assert best != beaten
