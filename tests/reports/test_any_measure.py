"""Any measure that is added to the list is written, printed, drawn and compared."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from edje_jax.evaluation.compare import compare
from edje_jax.evaluation.intervals import gain_intervals
from edje_jax.evaluation.measures import MEASURES, Measure, recall_at
from edje_jax.evaluation.protocols import folds_summary, k_sweep, weight_sweep
from edje_jax.reports import tables
from edje_jax.reports.evaluation_files import read_evaluation, write_metrics
from edje_jax.reports.figures import figures
from edje_jax.reports.report import write_report
from edje_jax.reports.tables import comparison_table, evaluation_tables

RECIPROCAL_RANK = Measure("MRR", lambda ranks: 100 / ranks)
MEDIAN_RANK = Measure("MedR", lambda ranks: ranks, "median", unit="rank", higher_is_better=False)


@pytest.fixture
def new_measures():
    MEASURES.extend([RECIPROCAL_RANK, MEDIAN_RANK])
    yield
    del MEASURES[-2:]


def text_of(table: Table) -> str:
    """Text of a table on a terminal that would cut what stands beyond its 80th character."""
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    return text


def write(folder, case, **extra) -> dict:
    options = {"model": "m", "data": "d", "seconds": {}, "extra": extra}
    return write_metrics(folder, case.retrieval, case.gallery, **options)


def test_new_measures_are_written_printed_and_drawn(make_case, tmp_path, new_measures):
    case = make_case(images=200, k=40)
    metrics = write(
        tmp_path,
        case,
        interval=gain_intervals(case.retrieval, case.gallery),
        folds=folds_summary([make_case(seed=seed).retrieval for seed in (1, 2)]),
        k_sweep=k_sweep(case.retrieval, (1, 10), 100.0),
        similarity_weights=weight_sweep(case.retrieval, (0.0, 3.0)),
    )
    reranks = case.retrieval.t2i.reranked_rank
    after, before = (metrics["t2i"][stage] for stage in ("reranked", "base"))
    assert list(after) == ["R@1", "R@5", "R@10", "MRR", "MedR"]
    assert after["MRR"] == pytest.approx(np.mean(100 / reranks))
    assert after["MedR"] == np.median(reranks)
    low, high = metrics["interval"]["t2i"]["MRR"]
    assert low < after["MRR"] - before["MRR"] < high
    assert set(metrics["interval"]["i2t"]) == set(after)

    for table in evaluation_tables(metrics):
        text = text_of(table)
        assert "MRR" in text and "(rank)" in text
    bars, depths = figures(metrics)
    for figure in (bars, depths):
        # The axis is in percent.
        assert ">MRR<" in figure.svg and "MedR" not in figure.svg
    page = write_report(
        tmp_path,
        case.retrieval,
        case.gallery,
        lambda _: Image.new("RGB", (4, 4)),
        metrics=metrics,
        examples=0,
    ).read_text("utf-8")
    assert f">MRR</th><td>{before['MRR']:.2f}</td><td>{after['MRR']:.2f}</td>" in page
    gain = re.search(r">MedR \(rank\)</th>(?:<td>[\d.]+</td>){2}<td>(.*?)</td>", page)
    # A lower rank is better.
    assert after["MedR"] < before["MedR"]
    assert gain and gain[1] == f'<em class="up">&minus;{before["MedR"] - after["MedR"]:.2f}</em>'


@pytest.mark.parametrize(("added", "tables_each"), [(0, 1), (2, 2), (12, 4)])
def test_any_number_of_measures_is_printed_whole(make_case, added, tables_each, monkeypatch):
    measures = [*MEASURES, *(recall_at(k) for k in range(20, 20 + added))]
    monkeypatch.setattr(tables, "MEASURES", measures)
    monkeypatch.setattr("edje_jax.evaluation.measures.MEASURES", measures)
    deep = make_case(images=200, k=150).retrieval
    sweep = k_sweep(deep, (1, 150), 100.0)
    found = list(tables.k_tables(sweep))
    assert len(found) == tables_each
    texts = [text_of(table) for table in found]
    assert ["by depth" in text for text in texts] == [True] + [False] * (tables_each - 1)
    rows = [[text.splitlines()[line].split() for text in texts] for line in (-3, -2)]
    for at, parts in zip(sweep["at"], rows, strict=True):
        setting = [f"{at['k']:,}", f"{at['ms_per_query']:,.1f}"]
        assert all(part[:2] == setting for part in parts)
        values = [
            value
            for key in ("t2i", "i2t")
            for value in (*at[key]["reranked"].values(), at[key]["ceiling"])
        ]
        assert len(values) == 2 * (len(measures) + 1)
        assert [cell for part in parts for cell in part[2:]] == [f"{v:.2f}" for v in values]


def test_new_measures_are_compared_in_evaluations_that_lack_them(make_case, tmp_path, request):
    write(tmp_path / "older", make_case(k=2))
    request.getfixturevalue("new_measures")
    case = make_case(k=10)
    write(tmp_path / "newer", case)
    older, newer = (read_evaluation(tmp_path / name) for name in ("older", "newer"))
    assert "MRR" not in older.metrics["t2i"]["reranked"]
    result = compare(older, newer)
    side = result["t2i"]
    assert side["a"]["MRR"] == pytest.approx(np.mean(100 / older.ranks["t2i"]))
    assert side["b"]["MedR"] == case.retrieval.metrics()["t2i"]["reranked"]["MedR"]
    assert side["difference"]["MRR"] == side["b"]["MRR"] - side["a"]["MRR"] != 0
    low, high = side["interval"]["MRR"]
    assert low < side["difference"]["MRR"] < high
    text = text_of(comparison_table(json.loads(json.dumps(result))))
    assert "MRR" in text and "MedR (rank)" in text
