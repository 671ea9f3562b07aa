import os
import re

from rich.console import Console
from rich.table import Table

from edje_jax.evaluation.intervals import gain_intervals
from edje_jax.evaluation.protocols import folds_summary, k_sweep, weight_sweep
from edje_jax.reports import tables


def lines_of(table: Table, width: int) -> list[str]:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    return text.splitlines()


def test_table_shows_base_reranked_gain_k_and_ceiling(make_case):
    metrics = make_case(k=7).retrieval.metrics()
    lines = lines_of(tables.metrics_table(metrics), 120)
    assert "k = 7" in lines[0]
    rows = [line for line in lines if "R@" in line and "│" in line]
    assert len(rows) == 6
    for row, (direction, at) in zip(
        rows, [(d, at) for d in ("t2i", "i2t") for at in ("R@1", "R@5", "R@10")], strict=True
    ):
        base, after = (metrics[direction][stage][at] for stage in ("base", "reranked"))
        shown = re.findall(r"[+-]?\d+\.\d\d", row)
        assert shown[:3] == [f"{base:.2f}", f"{after:.2f}", f"{after - base:+.2f}"]
        if at == "R@1":
            assert shown[3] == f"{metrics[direction]['ceiling']:.2f}"


def test_a_second_model_stands_beside_the_first(make_case):
    case = make_case(k=7)
    found = {name: 97.37 + i for i, name in enumerate(("R@1", "R@5", "R@10"))}
    then = {"model": "runs/[b]captioner", "k": 3, "weight": 0.35, "t2i": found, "i2t": found}
    metrics = case.retrieval.metrics() | {
        "interval": gain_intervals(case.retrieval, case.gallery), "then": then
    }  # fmt: skip
    lines = lines_of(tables.metrics_table(metrics), 80)
    assert max(map(len, lines)) <= 80
    for value in found.values():
        assert sum(f"{value:.2f}" in line for line in lines) == 2
    assert "runs/[b]captioner reranks the best 3, weight 0.35" in " ".join(lines)


def test_tables_show_every_setting(make_case):
    deep = make_case(k=10).retrieval
    folds = [make_case(images, k=5, seed=images).retrieval for images in (35, 36)]
    metrics = {
        **deep.metrics(),
        "folds": folds_summary(folds),
        "k_sweep": k_sweep(deep, (1, 9), 500.0),
        "similarity_weights": weight_sweep(deep, (0.0, 3.5)),
    }
    _, in_folds, depths, weights = (lines_of(one, 80) for one in tables.evaluation_tables(metrics))
    assert "500.0 pairs a second" in depths[0]
    for row, at in zip(depths[-3:-1], metrics["k_sweep"]["at"], strict=True):
        values = [*at["t2i"]["reranked"].values(), at["t2i"]["ceiling"]]
        expected = [str(at["k"]), f"{at['ms_per_query']:.1f}", *(f"{v:.2f}" for v in values)]
        assert row.split()[:6] == expected
    assert [row.split()[0] for row in weights[-3:-1]] == ["0", "3.5"]
    assert "Mean of 2 folds of 35 to 36 images, k = 5" in in_folds[0]
