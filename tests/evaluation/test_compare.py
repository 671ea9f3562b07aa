"""Intervals of differences, and two evaluations side by side.

Covers evaluation/intervals.py.
"""

import json

import numpy as np
import pytest
from rich.console import Console

from edje_jax.cli.evaluate import compare_evaluations
from edje_jax.evaluation import intervals
from edje_jax.evaluation.compare import compare
from edje_jax.evaluation.intervals import difference_intervals, gain_intervals, mean_intervals
from edje_jax.evaluation.measures import Measure, measure_ranks, recall_at
from edje_jax.evaluation.retrieval import Gallery, rerank
from edje_jax.reports.evaluation_files import read_evaluation, write_metrics
from edje_jax.reports.tables import comparison_table


def ranks(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    before = rng.integers(1, 15, count)
    return before, np.maximum(1, before - rng.integers(-1, 4, count))


def test_the_interval_is_about_what_the_normal_law_gives():
    before, after = ranks(2000, 0)
    low, high = difference_intervals(before, after, np.arange(2000))["R@5"]
    change = 100 * ((after <= 5).astype(float) - (before <= 5))
    error = 1.96 * change.std() / np.sqrt(len(change))
    assert low == pytest.approx(change.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(change.mean() + error, abs=0.1 * error)


def test_captions_of_one_image_are_no_independent_queries():
    before, after = ranks(400, 1)
    alone = difference_intervals(before, after, np.arange(400))
    five = [np.repeat(x, 5) for x in (before, after, np.arange(400))]
    # Five copies of each say no more than one does.
    copied = difference_intervals(*five)
    assert all(copied[name] == pytest.approx(alone[name]) for name in alone)
    apart = difference_intervals(*five[:2], np.arange(2000))
    assert np.ptp(apart["R@1"]) < 0.6 * np.ptp(alone["R@1"])


def test_images_bring_all_their_queries():
    """Every draw's mean is weighted by queries: a brute force with the same draws."""
    rng = np.random.default_rng(2)
    image = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    before, after = ranks(len(image), 3)
    chosen = np.random.default_rng(7).integers(0, 30, (5000, 30))
    means = []
    for draw in chosen:
        rows = np.concatenate([np.flatnonzero(image == p) for p in draw])
        means.append(measure_ranks(after[rows])["R@1"] - measure_ranks(before[rows])["R@1"])
    expected = np.percentile(means, (2.5, 97.5))
    found = difference_intervals(before, after, image, seed=7)["R@1"]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_medians_of_the_same_draws_by_brute_force(monkeypatch):
    median = Measure("MedR", lambda ranks: ranks, "median", unit="rank", higher_is_better=False)
    rng = np.random.default_rng(2)
    image = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    before, after = ranks(len(image), 3)
    recall = difference_intervals(before, after, image, seed=7)["R@1"]
    monkeypatch.setattr(intervals, "BLOCK", 1000)
    monkeypatch.setattr(intervals, "MEASURES", [recall_at(1), median])
    changes = []
    for draw in np.random.default_rng(7).integers(0, 30, (5000, 30)):
        rows = np.concatenate([np.flatnonzero(image == i) for i in draw])
        changes.append(np.median(after[rows]) - np.median(before[rows]))
    expected = np.percentile(changes, (2.5, 97.5))
    assert expected[0] < expected[1]
    found = difference_intervals(before, after, image, seed=7)
    np.testing.assert_array_equal(found["MedR"], expected)
    assert found["R@1"] == recall


def test_queries_without_an_answer_do_not_count_and_seeds_repeat():
    before, after = ranks(997, 4)
    image = np.random.default_rng(4).integers(0, 300, 997)
    padded = [np.append(x, [0, 0]) for x in (before, after)]
    with_padding = difference_intervals(*padded, np.append(image, [3, 2000]), seed=5)
    assert with_padding == difference_intervals(before, after, image, seed=5)
    assert with_padding != difference_intervals(before, after, image, seed=6)
    with pytest.raises(ValueError, match="one of the two systems"):
        difference_intervals(before, np.where(image == 9, 0, after), image)
    with pytest.raises(ValueError, match="nothing to draw"):
        difference_intervals(0 * before, 0 * after, image)


def test_the_interval_of_a_mean_is_that_of_a_difference_from_nothing():
    before, after = ranks(200, 5)
    image = np.arange(200) // 3
    hits = 100.0 * (after[:, None] <= (1, 5, 10))
    none = np.full_like(after, 99)
    found = dict(zip(("R@1", "R@5", "R@10"), mean_intervals(hits, image, seed=1), strict=True))
    assert found == difference_intervals(none, after, image, seed=1)
    assert found != difference_intervals(before, after, image, seed=1)
    for values, images in ((hits[:0], image[:0]), (hits, image[:9])):
        with pytest.raises(ValueError, match="one or more of each"):
            mean_intervals(values, images)


def test_no_change_is_an_interval_of_nothing(make_case):
    gallery, retrieval = make_case()
    found = gain_intervals(retrieval, gallery)
    assert found["t2i"]["R@10"] == [0.0, 0.0] and (found["level"], found["seed"]) == (95, 0)
    for key in ("t2i", "i2t"):
        metrics = retrieval.metrics()[key]
        low, high = found[key]["R@1"]
        assert low < metrics["reranked"]["R@1"] - metrics["base"]["R@1"] < high


# --- compare --------------------------------------------------------------------------------------


def evaluation(folder, quality: float, images: int = 60, odd: str = "", extra=0, k: int = 10):
    """An evaluation's files; a better scorer has a higher `quality`."""
    rng = np.random.default_rng(0)
    names = [f"p#{i}" for i in range(images)] + [f"pool{i}" for i in range(extra)]
    captions = [[f"{j} of {i}{odd}" for j in range(3)] for i in range(images)] + [[]] * extra
    gallery = Gallery.of(names, captions)
    embedded = rng.normal(size=(len(names), 6))
    texts = embedded[gallery.caption_image] + rng.normal(size=(len(gallery.captions), 6))
    embedded, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (embedded, texts))

    def score(text_index, image_index):
        noise = np.random.default_rng(1).normal(size=len(text_index))
        return quality * (gallery.caption_image[text_index] == image_index) + noise

    retrieval = rerank(gallery, embedded, texts, score, k)
    model = f"model {quality}"
    write_metrics(folder, retrieval, gallery, model=model, data="some:set", seconds={})
    return retrieval


def compare_folders(a, b):
    return compare(read_evaluation(a), read_evaluation(b))


def test_differences_and_their_intervals(tmp_path):
    a = evaluation(tmp_path / "a", 0.5)
    b = evaluation(tmp_path / "b", 2.5, k=8)
    result = compare_folders(tmp_path / "a", tmp_path / "b")
    for key in ("t2i", "i2t"):
        before, after = (x.metrics()[key]["reranked"] for x in (a, b))
        low, high = result[key]["interval"]["R@1"]
        assert result[key]["a"] == before and result[key]["b"] == after
        assert low < result[key]["difference"]["R@1"] == after["R@1"] - before["R@1"] < high
        image = np.repeat(np.arange(60), 3) if key == "t2i" else np.arange(60)
        sides = (getattr(x, key).reranked_rank for x in (a, b))
        assert [low, high] == list(difference_intervals(*sides, image)["R@1"])
    assert result["t2i"]["interval"]["R@1"][0] > 0
    assert result["b"] == {
        "folder": str(tmp_path / "b"), "model": "model 2.5", "data": "some:set", "k": 8,
        "similarity_weight": 0.0,
    }  # fmt: skip
    assert json.loads(json.dumps(result)) == result
    assert comparison_table(result).row_count == 6
    same = compare_folders(tmp_path / "a", tmp_path / "a")["i2t"]
    assert set(same["difference"].values()) == {0.0}
    assert all(interval == [0.0, 0.0] for interval in same["interval"].values())


def test_what_was_compared_is_told_letter_by_letter(tmp_path):
    evaluation(tmp_path / "a", 0.5)
    result = compare_folders(tmp_path / "a", tmp_path / "a")
    result["a"]["model"], result["b"]["similarity_weight"] = "runs/[bold]x[/]y", 0.5
    console = Console(record=True, width=200)
    console.print(comparison_table(result))
    text = console.export_text()
    assert "A: runs/[bold]x[/]y on some:set, k = 10, similarity weight 0" in text
    assert "B: model 0.5 on some:set, k = 10, similarity weight 0.5" in text


def test_files_are_written_before_the_table_and_the_table_is_told_without_them(
    tmp_path, monkeypatch, capsys
):
    evaluation(tmp_path / "a", 0.5)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match="taken"):
        compare_evaluations(tmp_path / "a", tmp_path / "a", tmp_path / "taken")
    assert "B - A" in capsys.readouterr().out

    def broken(*_):
        raise BrokenPipeError

    monkeypatch.setattr(Console, "print", broken)
    with pytest.raises(BrokenPipeError):
        compare_evaluations(tmp_path / "a", tmp_path / "a", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["a"]["k"] == 10


def test_other_queries_or_galleries_are_refused(tmp_path):
    evaluation(tmp_path / "a", 1.0)
    evaluation(tmp_path / "fewer", 1.0, images=59)
    evaluation(tmp_path / "reworded", 1.0, odd="!")
    evaluation(tmp_path / "pooled", 1.0, extra=5)
    for name, told in (
        ("fewer", "different t2i queries .first: one has more"),
        ("reworded", r"different t2i queries .first: .'p#0#0', '0 of 0'. and .*'0 of 0!'"),
        ("pooled", "different galleries"),
    ):
        with pytest.raises(ValueError, match=told):
            compare_folders(tmp_path / "a", tmp_path / name)
