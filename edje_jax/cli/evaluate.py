"""Command `edje eval`: load a model, evaluate it on a set, print the tables and write the files."""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from edje_jax.cli.progress import Bars
from edje_jax.cli.tables import print_tables_after
from edje_jax.config.captioner import CaptionScore
from edje_jax.data.compositional import read_items
from edje_jax.data.sources.pooled import Pooled
from edje_jax.evaluate.compositional import score_items
from edje_jax.evaluate.gallery import open_gallery
from edje_jax.evaluate.measure import Measurement, Protocol, measure_source, scored_by
from edje_jax.evaluate.second_model import SecondModel
from edje_jax.evaluate.word_attention import caption_word_maps
from edje_jax.evaluation.compare import compare
from edje_jax.evaluation.compositional import summarise
from edje_jax.evaluation.second_ranking import check_calibrated, check_same_frames
from edje_jax.reports.compositional import compositional_table, write_compositional
from edje_jax.reports.evaluation_files import read_evaluation, write_metrics
from edje_jax.reports.report import Heading, write_report
from edje_jax.reports.tables import comparison_table, evaluation_tables
from edje_jax.runtimes.base import Runtime
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import errors_name, write_json
from edje_jax.types import Source


@dataclasses.dataclass(frozen=True)
class SecondChoice:
    """Second model of an evaluation, as it was asked for."""

    model: str
    k: int = 20
    """Candidates that it reranks."""
    weight: float = 1.0
    """Weight of its scores beside the first model's, from 0 to 1."""
    choose_on: str | None = None
    """SPEC to choose the weight on instead."""
    caption_score: CaptionScore | None = None
    """Score of the model, a captioner; None for its own."""


class _Second:
    """Second model, and the set that its weight is chosen on, opened before the work."""

    def __init__(self, choice: SecondChoice, image_root: str | None):
        self.choice, self.chosen_on = choice, None
        if choice.choose_on:
            self.chosen_on = open_gallery(choice.choose_on, None, image_root)
        reranker = Reranker.from_pretrained(choice.model)
        if choice.caption_score and reranker.config.captioner is None:
            raise ValueError(
                f"--then-caption-score {choice.caption_score}: {choice.model} is no captioner;"
                " leave the option out"
            )
        scored = scored_by(reranker.runtime, reranker.calibration, choice.caption_score)
        self.model = SecondModel(*scored, choice.k)

    def measure(
        self, source: Source, found: Measurement, first: Reranker, protocol: Protocol, **how: Any
    ) -> dict[str, Any]:
        """Measures of the order that the second model makes of what the first one has found, as
        metrics.json has them under "then"; `how` is `max_bad` and `progress`."""
        weight = self.choice.weight
        if self.chosen_on is not None:
            names = ("k", "similarity_weight", "first_stage", "caption_score")
            same = Protocol(**{name: getattr(protocol, name) for name in names})
            ranked = measure_source(first.runtime, self.chosen_on, same, first.calibration, **how)
            weight = self.model.rank(self.chosen_on, ranked, **how).best_weight()
        told = {
            "model": self.choice.model,
            "chosen_on": self.choice.choose_on,
            "calibrated": check_calibrated(found.calibration, self.model.calibration, weight),
        }
        if captioner := self.model.runtime.config.captioner:
            told["caption_score"] = captioner.score
        return {**told, **self.model.rank(source, found, **how).metrics(weight)}


def evaluate_model(
    model: str,
    data: str,
    protocol: Protocol = Protocol(),
    *,
    pool: str | None = None,
    out: Path | None = None,
    image_root: str | None = None,
    max_bad: float = 0.01,
    then: SecondChoice | None = None,
) -> dict[str, Any]:
    """Print what was measured, and return it as metrics.json has it; with `out`, write the report
    and every file there. With `then` a second model reranks the best candidates again.

    Raises:
        FileNotFoundError, ValueError: a model or a set cannot be opened, or is not what the
            protocol needs.
        TooManyBadRecords: more than `max_bad` of the records are bad.
    """
    started = time.perf_counter()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Fail before the work if it cannot be made
    source = open_gallery(data, pool, image_root)
    second = _Second(then, image_root) if then else None
    reranker = Reranker.from_pretrained(model)
    if second:
        check_same_frames(reranker.config, second.model.runtime.config)
    if protocol.caption_score and reranker.config.captioner is None:
        raise ValueError(
            f"--caption-score {protocol.caption_score}: {model} is no captioner; the score of a"
            " captioner after --then is chosen by --then-caption-score"
        )
    runtime, loaded = reranker.runtime, time.perf_counter()
    with Bars() as bars:
        how: dict[str, Any] = {"max_bad": max_bad, "progress": bars.show}
        found = measure_source(runtime, source, protocol, reranker.calibration, **how)
        extra, seconds = dict(found.extra), {"load": loaded - started, **found.seconds}
        if second:
            began = time.perf_counter()
            extra["then"] = second.measure(source, found, reranker, protocol, **how)
            seconds["then"] = time.perf_counter() - began
    seconds["total"] = time.perf_counter() - started
    if isinstance(source, Pooled):
        extra["pool"] = {"data": pool, "left_out": source.left_out}
    metrics = {**found.retrieval.metrics(), **extra}
    with print_tables_after(evaluation_tables(metrics)):
        if out is None:
            return metrics
        facts = {"model": model, "data": data, **({"pool": pool} if pool else {})}
        told = {name: round(value, 3) for name, value in seconds.items()}
        with errors_name(out):
            metrics = write_metrics(
                out, found.retrieval, found.encoded.gallery,
                model=model, data=data, seconds=told, extra=extra,
            )  # fmt: skip
            page = _write_page(out, runtime, source, found, facts, metrics)
    Console().print(f"report: {page}", markup=False)
    return metrics


def _write_page(
    out: Path,
    runtime: Runtime,
    source: Source,
    found: Measurement,
    facts: dict[str, str],
    metrics: dict[str, Any],
) -> Path:
    """Write report.html."""
    record = found.encoded.record
    return write_report(
        out,
        found.retrieval,
        found.encoded.gallery,
        lambda i: source.image(record[i]),
        Heading(f"{facts['data']}, reranked by {facts['model']}", facts),
        metrics=metrics,
        word_maps=partial(caption_word_maps, runtime, found.encoded, source),
    )


def compare_evaluations(a: Path, b: Path, out: Path | None = None) -> dict[str, Any]:
    """Print how two evaluations differ; with `out`, write it there as comparison.json.

    Raises:
        FileNotFoundError, ValueError: see `read_evaluation` and `compare`.
    """
    result = compare(read_evaluation(a), read_evaluation(b))
    with print_tables_after([comparison_table(result)]):
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "comparison.json", result)
    return result


def evaluate_compositional(
    model: str,
    files: Sequence[Path],
    *,
    out: Path | None = None,
    image_root: str | None = None,
    similarity_weight: float | None = None,
) -> dict[str, Any]:
    """Print and return text, image and group scores; with `out`, write compositional.json and
    per_item.csv there.

    Raises:
        FileNotFoundError, ValueError: the model, a file or an image cannot be opened.
        BadImage: an image cannot be read.
    """
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    items = read_items(files, image_root)
    reranker = Reranker.from_pretrained(model)
    if similarity_weight is None:
        similarity_weight = reranker.calibration.similarity_weight
    with Bars() as bars:
        scored = score_items(reranker.runtime, items, similarity_weight, bars.show)
    result = summarise(items, scored)
    settings = {
        "model": model,
        "compositional": [str(path) for path in files],
        "similarity_weight": similarity_weight,
    }
    with print_tables_after([compositional_table(result)]):
        if out is None:
            return result
        with errors_name(out):
            return write_compositional(out, items, scored, settings)
