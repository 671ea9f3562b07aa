import dataclasses
import os

import numpy as np
from PIL import Image
from rich.console import Console

from edje_jax.evaluation.tuning import TuneResult
from edje_jax.models.token_formats import FORMATS
from edje_jax.reports.tuning import draw, fills_of, mark_of, results_table, short_names


def a_result(recall: float, speed: float, size: int, model: str = "a") -> TuneResult:
    return TuneResult(
        model, 0, "updated", "int8", "exact", 10, recall, recall, size, 24, 10 * speed, 0.0, 0.0
    )


def test_the_plot_names_every_model_once(tmp_path):
    results = [
        a_result(80, 100, 50, "x/s2/model"),
        a_result(70, 200, 50, "y/s2/model"),
        a_result(60, 300, 25, "z/model"),
    ]
    assert short_names(["."]) == {".": "."}
    names = short_names([result.model for result in results])
    assert list(names.values()) == ["x/s2/model", "y/s2/model", "z"]
    draw(results, tmp_path / "tune.png")
    with Image.open(tmp_path / "tune.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44)):  # C0, C1, C2 at full strength
        assert (pixels == colour).all(axis=1).sum() > 100


def test_every_token_dtype_has_a_mark_of_its_own():
    assert [mark_of(dtype) for dtype in FORMATS] == ["o", "D", "^", "v"]


def test_the_table_of_results_fits_into_80_characters():
    result = TuneResult(
        "m", 6, "attended", "bfloat16", "exact", 1000, 99.5, 100, 147_456, 3072, 12_345, 1, 1
    )  # fmt: skip
    row = printed(result, 80)[-1]
    values = ["bfloat16", "1000", "99.50", "100.00", "147,456", "12,345", "81.0"]
    assert row.split() == ["*", "m", "6", "attended", *values]


def printed(result: TuneResult, width: int) -> list[str]:
    """Last lines of the table: its columns, the line under them, and the result."""
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results_table([result], "shapes:val", 8))
    return console.export_text().splitlines()[-4:-1]


def test_first_stages_stand_in_the_table_where_there_is_a_choice():
    result = TuneResult("m", 0, "updated", "int8", "codes-64", 50, 80, 70, 25_088, 8, 9000, 1, 1)
    columns, _, row = printed(result, 90)
    told = "model s tokens first stage k T2I I2T bytes + stage pairs/s ms/query"
    assert columns.split() == told.split()
    values = ["codes-64", "50", "80.00", "70.00", "25,088", "8", "9,000", "5.6"]
    assert row.split() == ["*", "m", "0", "int8", *values]


def test_every_first_stage_fills_its_marks_otherwise():
    one = a_result(80, 100, 50)
    results = [dataclasses.replace(one, first_stage=name) for name in ("exact", "codes-8", "exact")]
    assert fills_of(results) == {"exact": "full", "codes-8": "none"}
