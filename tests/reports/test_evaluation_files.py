"""Files of an evaluation: written, read again by ourselves and by others, whole or not at all."""

import csv
import json
import os
from collections import defaultdict
from urllib.parse import unquote

import numpy as np
import pytest

from edje_jax.evaluation import trec
from edje_jax.evaluation.retrieval import DIRECTIONS, Gallery, rerank
from edje_jax.reports.evaluation_files import PER_QUERY, read_evaluation, write_metrics

FILES = {
    "metrics.json",
    "per_query.csv",
    *(f"{d}.{kind}" for d in ("t2i", "i2t") for kind in ("run", "base.run", "qrels")),
}
FACTS = {"model": "some/model", "data": "shapes:test", "seconds": {"score": 1.5}}


def test_metrics_json_round_trip(tmp_path, make_case):
    gallery, retrieval = make_case(weight=0.5)
    returned = write_metrics(
        tmp_path / "new", retrieval, gallery, **FACTS, extra={"config": {"k": 10}}
    )
    read = json.loads((tmp_path / "new" / "metrics.json").read_text("utf-8"))
    assert read == returned
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES
    expected = retrieval.metrics()
    assert {key: read[key] for key in ("k", "t2i", "i2t")} == expected
    assert {key: read[key] for key in FACTS} == FACTS
    assert read["similarity_weight"] == 0.5
    assert (read["pictures"], read["captions"]) == (40, 120)
    assert read["config"] == {"k": 10}


def test_extra_cannot_overwrite_a_metric(tmp_path, make_case):
    gallery, retrieval = make_case()
    with pytest.raises(ValueError, match="t2i itself"):
        write_metrics(tmp_path, retrieval, gallery, **FACTS, extra={"t2i": 1})
    assert list(tmp_path.iterdir()) == []


# --- TREC -----------------------------------------------------------------------------------------


def rescored(run_text: str, qrels_text: str, k: int) -> float:
    """Success@k as an independent reader has it: float32 scores sorted, the rank column unread;
    ties, of which there must be none, go against the run."""
    right = defaultdict(set)
    for line in qrels_text.splitlines():
        query, _, item, relevance = line.split()
        assert relevance == "1"
        right[query].add(item)
    found = defaultdict(list)
    for line in run_text.splitlines():
        query, q0, item, rank, score, _ = line.split()
        assert q0 == "Q0"
        found[query].append((np.float32(score), item, int(rank)))
    hits = 0
    for query, items in right.items():
        items_found = sorted(found[query], key=lambda x: (-x[0], x[1] in items))
        assert [rank for *_, rank in items_found] == list(range(1, len(items_found) + 1))
        hits += any(item in items for _, item, _ in items_found[:k])
    assert set(found) == set(right)
    return 100 * hits / len(right)


def test_trec_files_give_the_same_recall_when_read_again(tmp_path, make_case):
    gallery, retrieval = make_case(k=10)
    metrics = write_metrics(tmp_path, retrieval, gallery, **FACTS)
    for direction in ("t2i", "i2t"):
        qrels = (tmp_path / f"{direction}.qrels").read_text()
        for name, stage in ((f"{direction}.base.run", "base"), (f"{direction}.run", "reranked")):
            run = (tmp_path / name).read_text()
            for k in (1, 5, 10):
                expected = metrics[direction][stage][f"R@{k}"]
                assert rescored(run, qrels, k) == pytest.approx(expected)


def test_trec_scores_fall_where_everything_ties(tmp_path):
    gallery = Gallery.of([f"{i}" for i in range(12)], [["x"]] * 12)
    same = np.ones((12, 1), np.float32)
    retrieval = rerank(gallery, same, same, lambda t, i: np.zeros(len(t)), k=12)
    metrics = write_metrics(tmp_path, retrieval, gallery, **FACTS)
    for name in ("t2i.run", "t2i.base.run", "i2t.run", "i2t.base.run"):
        qrels = (tmp_path / f"{name[:3]}.qrels").read_text()
        score = rescored((tmp_path / name).read_text(), qrels, 5)
        assert score == pytest.approx(metrics[name[:3]]["base"]["R@5"]) == pytest.approx(500 / 12)


def test_only_ties_change_when_scores_are_made_to_decrease():
    scores = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]], np.float32)
    lowered = trec.strictly_decreasing(scores)
    assert (np.diff(lowered) < 0).all()
    assert lowered[0, [0, 1, 4]].tolist() == [3.0, 2.0, 1.0]
    np.testing.assert_allclose(lowered, scores, rtol=1e-6)


def test_ids_are_safe_and_can_be_read_back():
    names = ["a b.jpg", "a%20b.jpg", "tab\there", "line\nbreak", "a\u3000b", "plain-ü.jpg"]
    safe = [trec.safe_id(name) for name in names]
    assert all(len(name.split()) == 1 for name in safe)
    assert [unquote(name) for name in safe] == names
    assert safe[-1] == names[-1]


def test_queries_without_an_answer_stand_in_no_file(tmp_path):
    gallery = Gallery.of(["a", "distractor"], [["a0"], []])
    retrieval = rerank(
        gallery, np.eye(2), np.array([[0.8, 0.6]]), lambda t, i: np.zeros(len(t)), k=2
    )
    write_metrics(tmp_path, retrieval, gallery, **FACTS)
    assert {line.split()[0] for line in (tmp_path / "i2t.run").open()} == {"a"}
    assert "distractor" in (tmp_path / "t2i.run").read_text()
    with (tmp_path / "per_query.csv").open(newline="") as file:
        assert [row["query_id"] for row in csv.DictReader(file)] == ["a#0", "a"]


# --- per_query.csv --------------------------------------------------------------------------------


def test_per_query_rows(tmp_path):
    gallery = Gallery.of(["a", "b", "c"], [['says "hi", twice\nover'], ["b0"], ["c0"]])
    texts = np.array([[0.6, 0.8, 0], [0, 1, 0], [0.6, 0.8, 0]], np.float32)
    logits = np.array([[2.5, 1, 0], [0, 1, 0], [0, 1, 0]], np.float32)
    retrieval = rerank(gallery, np.eye(3), texts, lambda t, i: logits[t, i], k=2)
    write_metrics(tmp_path, retrieval, gallery, **FACTS)
    with (tmp_path / "per_query.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == PER_QUERY
    assert list(rows[0].values()) == [
        "t2i", "a#0", 'says "hi", twice\nover', "2", "1", "2.5", "b", "a",
    ]  # fmt: skip
    # Its image is no candidate, so nothing has scored it.
    assert list(rows[2].values()) == ["t2i", "c#0", "c0", "3", "3", "", "b", "b"]
    assert [row["direction"] for row in rows] == ["t2i"] * 3 + ["i2t"] * 3
    assert rows[4]["top1_before"] == "b#0"


# --- nothing half-written -------------------------------------------------------------------------


def test_failing_to_rename_leaves_no_part(tmp_path, make_case, monkeypatch):
    gallery, retrieval = make_case()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_metrics(tmp_path, retrieval, gallery, **FACTS)
    assert list(tmp_path.iterdir()) == []


def test_failing_half_way_through_a_file_leaves_none(tmp_path, make_case, monkeypatch):
    gallery, retrieval = make_case()

    def breaks(*_):
        yield "first line\n"
        raise RuntimeError("half way")

    monkeypatch.setattr(trec, "reranked_run", breaks)
    with pytest.raises(RuntimeError, match="half way"):
        write_metrics(tmp_path, retrieval, gallery, **FACTS)
    # What was finished before stays; metrics.json, the last, is not there.
    assert {path.name for path in tmp_path.iterdir()} == {"t2i.qrels", "t2i.base.run"}


# --- reading --------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path, make_case):
    gallery, retrieval = make_case()
    metrics = write_metrics(tmp_path, retrieval, gallery, **FACTS)
    read = read_evaluation(tmp_path)
    assert read.metrics == metrics and read.name == str(tmp_path)
    for key in DIRECTIONS:
        expected = getattr(retrieval, key).reranked_rank
        np.testing.assert_array_equal(read.ranks[key], expected)
    assert read.queries["t2i"] == list(zip(gallery.text_ids, gallery.captions, strict=True))
    assert read.queries["i2t"] == [(name, "") for name in gallery.image_ids]


def test_files_that_do_not_belong_together_are_refused(tmp_path, make_case):
    for name, k in (("a", 2), ("b", 10)):
        gallery, retrieval = make_case(k=k)
        write_metrics(tmp_path / name, retrieval, gallery, **FACTS)
    (tmp_path / "b" / "per_query.csv").replace(tmp_path / "a" / "per_query.csv")
    with pytest.raises(ValueError, match="they are of different evaluations"):
        read_evaluation(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match=r"b: no per_query.csv here"):
        read_evaluation(tmp_path / "b")
    (tmp_path / "a" / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="a: not what"):
        read_evaluation(tmp_path / "a")
