"""Load a model, evaluate it on a set, print the table and write the files."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from edje_jax.cli.progress import Bars
from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluation.report import table, write_metrics, write_report
from edje_jax.inference.gallery import encode_gallery, evaluate
from edje_jax.retrieval.reranker import Reranker
from edje_jax.weights.files import naming


def evaluate_model(
    model: str,
    data: str,
    *,
    k: int = 10,
    out: Path | None = None,
    image_root: str = "",
    similarity_weight: float = 0.0,
    max_bad: float = 0.01,
) -> dict[str, Any]:
    """The metrics as metrics.json has them; with `out`, everything API.md names is written there.

    Raises:
        FileNotFoundError, ValueError: the model or the set cannot be opened.
        TooManyBadPictures: more than `max_bad` of the pictures could not be read.
    """
    started = time.perf_counter()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # Told before the work if it cannot be
    source = open_captioned(data, image_root)
    reranker = Reranker.from_pretrained(model)
    seconds = {"load": time.perf_counter() - started}
    with Bars() as bars:
        mark = time.perf_counter()
        encoded = encode_gallery(reranker.engine, source, max_bad, bars.show)
        seconds["encode"] = time.perf_counter() - mark
        mark = time.perf_counter()
        retrieval = evaluate(reranker.engine, encoded, k, similarity_weight, bars.show)
        seconds["rerank"] = time.perf_counter() - mark
    seconds["total"] = time.perf_counter() - started
    metrics = retrieval.metrics()
    Console().print(table(metrics))
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
        )
        page = write_report(
            out,
            retrieval,
            encoded.gallery,
            lambda i: source.image(encoded.record[i]),
            title=f"{data}, reranked by {model}",
            facts={"model": model, "data": data},
        )
    Console().print(f"report: {page}")
    return metrics
