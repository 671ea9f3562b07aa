"""Command `edje tune`: which model, token dtype and depth to take, by what was measured on a set,
and the calibration that suits each model there."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from edje_jax.cli.first_stage_options import check_codes
from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.cli.tables import print_tables_after
from edje_jax.config.calibration import Calibration
from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import merge_by_id
from edje_jax.evaluate.first_stage import StageChoice
from edje_jax.evaluate.gallery import Progress, encode_gallery
from edje_jax.evaluate.tuning import (
    QUERIES,
    Choices,
    Untimed,
    fit_calibration,
    measure_recalls,
    measure_speeds,
)
from edje_jax.evaluation.protocols import SomeQueries
from edje_jax.reports.tuning import tuning_tables, write_tuning
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import read_json
from edje_jax.types import Source
from edje_jax.weights.calibration import NAME as CALIBRATION
from edje_jax.weights.calibration import write_calibration
from edje_jax.weights.card import state_calibration
from edje_jax.weights.folder import model_folder

log = logging.getLogger(__name__)


def tune(
    models: Sequence[str],
    data: str,
    choices: Choices,
    *,
    out: str | None = None,
    image_root: str | None = None,
    max_bad: float = 0.01,
    precision: float = 0.9,
    save: bool = False,
) -> None:
    """Measure each model with each token dtype, first stage and depth; print the results with those
    on the Pareto front marked, and with `out` write `tune.json` and `tune.png`.

    Each model's calibration is fitted at the largest depth with the first of the token dtypes and
    of the first stages; with `save` it is written into the model's folder. If a model fails, the
    results of the models before it are printed and written all the same.

    Raises:
        UsageError: a depth is not positive, there is no model, dtype or first stage, `precision` is
            no share, the number of queries is negative, a calibration cannot be saved to a hub id,
            or a model lacks the codes of a first stage.
        FileNotFoundError, ValueError: a model or the set cannot be opened.
        TooManyBadRecords: more than `max_bad` of the records are bad.
    """
    _check(models, choices, precision, save)
    folder = Path(out).expanduser() if out else None
    # Fail before the work if a folder or a model cannot be opened.
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        check_codes(model, choices.first_stages)
    source = merge_by_id(open_captioned(data, image_root))
    deepest = max(choices.depths)
    if deepest > len(source):
        log.warning("--k %d: all of the %d images are reranked", deepest, len(source))
    depths = sorted({min(depth, len(source)) for depth in choices.depths})
    choices = dataclasses.replace(choices, depths=depths)
    untimed: list[Untimed] = []
    calibrations: dict[str, Calibration] = {}
    try:
        with Bars() as bars:
            for model in models:
                found, asked = _measure(model, source, choices, max_bad, bars.show)
                untimed += found
                warn_of_training_data(model, data)
                if fitted := fit_calibration(asked, precision, data):
                    calibrations[model] = fitted
                    if save:
                        save_calibration(model_folder(model), fitted)
    finally:
        if untimed:
            with Bars() as bars:
                results = measure_speeds(untimed, bars.show)
            with print_tables_after(tuning_tables(results, calibrations, data, QUERIES)):
                if folder:
                    write_tuning(folder, results, calibrations, data)


def _measure(
    model: str, source: Source, choices: Choices, max_bad: float, progress: Progress
) -> tuple[list[Untimed], SomeQueries]:
    """Recalls of one model, and the retrieval that its calibration is fitted to."""
    reranker = Reranker.from_pretrained(model)
    runtime = reranker.runtime
    assert isinstance(runtime, JaxRuntime)
    encoded = encode_gallery(runtime, source, max_bad, progress)
    return measure_recalls(runtime, reranker.source, encoded, choices, progress)


def _check(models: Sequence[str], choices: Choices, precision: float, save: bool) -> None:
    """Raise a UsageError for options out of range."""
    if not choices.depths or min(choices.depths) < 1:
        raise UsageError(f"--k {' '.join(map(str, choices.depths))}: give depths from 1 on")
    if not models or not choices.token_dtypes or not choices.first_stages:
        raise UsageError("give at least one model, one of --token-dtypes and of --first-stages")
    if not 0 < precision <= 1:
        raise UsageError(f"--precision {precision:g}: a share above 0, up to 1")
    if choices.queries is not None and choices.queries < 0:
        raise UsageError(f"--queries {choices.queries}: give a number, or leave it out for all")
    for model in models if save else ():
        if not Path(model).expanduser().is_dir():
            raise UsageError(
                f"--save: {model} is no folder here; download it, or copy a shipped model with"
                f" edje convert {model} model/ --to edje, and name the folder"
            )


def first_stages(labels: Sequence[str]) -> list[StageChoice]:
    """First stages by their labels, such as exact and codes-64.

    Raises:
        UsageError: no first stage has that name.
    """
    try:
        return [StageChoice.named(label) for label in labels]
    except ValueError as error:
        raise UsageError(f"--first-stages: {error}") from None


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Write a calibration into a model folder, and say in its README.md that scores are calibrated.

    Raises:
        OSError: a file cannot be written.
    """
    write_calibration(folder, calibration)
    state_calibration(folder)
    log.info("wrote %s", folder / CALIBRATION)


def warn_of_training_data(model: str, data: str) -> None:
    """Warn if the workdir of a model says that it was trained on the set."""
    path = model_folder(model).parent / "config.json"
    run = read_json(path) if path.exists() else {}
    trained_on = run.get("data", {}).get("train", "") if isinstance(run.get("data"), dict) else ""
    if data in str(trained_on).split("+"):
        log.warning(
            "%s was trained on %s: what is fitted there is too confident elsewhere; give a set that"
            " it has not seen",
            model, data,
        )  # fmt: skip
