import os

import numpy as np
from PIL import Image
from rich.console import Console

from edje_jax.evaluation.tuning import TuneResult
from edje_jax.models.token_formats import FORMATS
from edje_jax.reports.tuning import draw, mark_of, results_table, short_names


def a_result(recall: float, speed: float, size: int, model: str = "a") -> TuneResult:
    return TuneResult(model, 0, "updated", "int8", 10, recall, recall, size, 10 * speed, 0.0, 0.0)


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
    result = TuneResult("m", 6, "attended", "bfloat16", 1000, 99.5, 100, 147_456, 12_345, 1, 1)
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(results_table([result], "shapes:val", 8))
    row = console.export_text().splitlines()[-2]
    values = ["bfloat16", "1000", "99.50", "100.00", "147,456", "12,345", "81.0"]
    assert row.split() == ["*", "m", "6", "attended", *values]
