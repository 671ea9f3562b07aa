"""Load a model, evaluate it on a set, print the tables and write the files."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edje_jax.cli.progress import Bars
from edje_jax.data.compositional import read_items
from edje_jax.data.images import image_of
from edje_jax.data.sources.pooled import Pooled
from edje_jax.data.sources.registry import open_captioned, open_source
from edje_jax.data.sources.subset import joined
from edje_jax.evaluate.compositional import score_items
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery
from edje_jax.evaluate.measure import Protocol, measure
from edje_jax.evaluate.word_attention import word_maps
from edje_jax.evaluation.compare import compare
from edje_jax.evaluation.compositional import summarise
from edje_jax.reports.compositional import compositional_table, write_compositional
from edje_jax.reports.report import write_metrics, write_report
from edje_jax.reports.tables import (
    comparison_table,
    eccv_table,
    folds_table,
    k_table,
    table,
    weight_table,
)
from edje_jax.reports.word_maps import WordMaps
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import naming, write_json
from edje_jax.types import Source


def evaluate_model(
    model: str,
    data: str,
    protocol: Protocol = Protocol(),
    *,
    pool: str = "",
    out: Path | None = None,
    image_root: str = "",
    max_bad: float = 0.01,
) -> dict[str, Any]:
    """The metrics as metrics.json has them; with `out`, the report and every table lie there.

    Raises:
        FileNotFoundError, ValueError: the model or the set cannot be opened.
        TooManyBadPictures: more than `max_bad` of the records are bad.
    """
    started = time.perf_counter()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Told before the work if it cannot be
    source = open_gallery(data, pool, image_root)
    reranker = Reranker.from_pretrained(model)
    seconds = {"load": time.perf_counter() - started}
    with Bars() as bars:
        mark = time.perf_counter()
        encoded = encode_gallery(reranker.runtime, source, max_bad, bars.show)
        seconds["encode"] = time.perf_counter() - mark
        mark = time.perf_counter()
        retrieval, extra = measure(
            reranker.runtime, encoded, protocol, bars.show, reranker.calibration
        )
        seconds["rerank"] = time.perf_counter() - mark
    seconds["total"] = time.perf_counter() - started
    if isinstance(source, Pooled):
        extra["pool"] = {"data": pool, "left_out": source.left_out}
    metrics = {**retrieval.metrics(), **extra}
    with told_after(tables(metrics)):
        if out is None:
            return metrics
        with naming(out):
            metrics = write_metrics(
                out,
                retrieval,
                encoded.gallery,
                model=model,
                data=data,
                seconds={name: round(value, 3) for name, value in seconds.items()},
                extra=extra,
            )
            page = write_report(
                out,
                retrieval,
                encoded.gallery,
                lambda i: source.image(encoded.record[i]),
                title=f"{data}, reranked by {model}",
                facts={"model": model, "data": data, **({"pool": pool} if pool else {})},
                metrics=metrics,
                word_maps=partial(caption_words, reranker.runtime, encoded, source),
            )
    Console().print(f"report: {page}", markup=False)
    return metrics


@contextmanager
def told_after(made: Iterable[Table]) -> Iterator[None]:
    """Write files in the block and print tables after it, whatever becomes of either: no numbers
    are lost to a full disk, and no files to a terminal that is gone."""
    try:
        yield
    finally:
        console = Console()
        for one in made:
            console.print(one)


def open_gallery(data: str, pool: str, image_root: str) -> Source:
    """The set to ask with, among the pictures of the pool if there is one.

    Raises:
        FileNotFoundError, ValueError: one of them cannot be opened.
    """
    source = joined(open_captioned(data, image_root))
    return Pooled(source, open_source(pool, image_root)) if pool else source


def caption_words(runtime: JaxRuntime, encoded: EncodedGallery, source: Source, q: int) -> WordMaps:
    """Attention maps of the words of caption q over its image.

    Raises:
        BadImage: the picture can no longer be read.
    """
    gallery = encoded.gallery
    record = int(encoded.record[int(gallery.caption_image[q])])
    picture = image_of(source, record, runtime.config.image)
    return word_maps(runtime, picture, gallery.captions[q])


def tables(metrics: dict[str, Any]) -> Iterator[Table]:
    """Everything that was measured, for the terminal."""
    yield table(metrics)
    for name, made in (
        ("folds", folds_table),
        ("k_sweep", k_table),
        ("similarity_weights", weight_table),
        ("eccv", eccv_table),
    ):
        if name in metrics:
            yield made(metrics[name])


def compare_evaluations(a: Path, b: Path, out: Path | None = None) -> dict[str, Any]:
    """Print what `compare` finds; with `out`, write it there as comparison.json.

    Raises:
        FileNotFoundError, ValueError: see `compare`.
    """
    result = compare(a, b)
    with told_after([comparison_table(result)]):
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "comparison.json", result)
    return result


def evaluate_compositional(
    model: str,
    files: Sequence[Path],
    *,
    out: Path | None = None,
    image_root: str = "",
    similarity_weight: float | None = None,
) -> dict[str, Any]:
    """Text, image and group scores; with `out`, compositional.json and per_item.csv are written.

    Raises:
        FileNotFoundError, ValueError: the model, a file or a picture cannot be opened.
        BadImage: a picture cannot be read.
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
    about = {
        "model": model,
        "compositional": [str(path) for path in files],
        "similarity_weight": similarity_weight,
    }
    with told_after([compositional_table(result)]):
        if out is None:
            return result
        with naming(out):
            return write_compositional(out, items, scored, about)
