"""`make demo`: train a small EDJE on the built-in scenes, evaluate it, show one search.

Leaves `runs/demo/model/`, `runs/demo/eval/metrics.json` and `runs/demo/eval/report.html`. A second
call resumes, or only evaluates if the training is done.
"""

import dataclasses
import logging
import shutil
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from edje_jax.cli.evaluate import evaluate_model
from edje_jax.cli.named_configs import load_config
from edje_jax.cli.program import UsageError, run_program
from edje_jax.data.sources.registry import open_source
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import start_with_huge_pages
from edje_jax.training.loop import run
from edje_jax.training.tasks.edje import EdjeTask

log = logging.getLogger(__name__)

WORKDIR = Path("runs/demo")
FEATURES = WORKDIR / "features"
"""Folder of the backbone features of the training set, 0.7 GB, deleted after the training."""
GALLERY = "shapes:test"
PICTURE = 7
"""The picture of the gallery whose first caption is the search that is shown."""


def main(arguments: list[str]) -> int:
    """Train, evaluate, search."""
    if arguments:
        raise UsageError("the demo takes no arguments; for runs of your own there is edje train")
    started, config = time.perf_counter(), load_config("demo")
    if not (WORKDIR / "model" / "config.json").exists():
        log.info(
            "training: %d steps on procedural scenes; Ctrl-C saves, a rerun goes on", config.steps
        )
        # Four epochs, so that encoding every picture once saves more time than it takes.
        data = dataclasses.replace(config.data, cache_features=str(FEATURES))
        if not run(EdjeTask(dataclasses.replace(config, data=data), WORKDIR), WORKDIR):
            return 0
    shutil.rmtree(FEATURES, ignore_errors=True)
    log.info("evaluating on the 1,000 scenes and 5,000 captions of %s", GALLERY)
    evaluate_model(str(WORKDIR / "model"), GALLERY, out=WORKDIR / "eval")
    show_search()
    log.info("done in %.0f s", time.perf_counter() - started)
    return 0


def show_search(pictures: int = 200, k: int = 10) -> None:
    """Print one query against a part of the gallery: the base's order beside the reranked one."""
    source = open_source(GALLERY)
    query = source.captions(PICTURE)[0]
    reranker = Reranker.from_pretrained(WORKDIR / "model")
    images = [source.image(i) for i in range(pictures)]
    similarity = reranker.embed_images(images) @ reranker.embed_texts([query])[0]
    candidates = (-similarity).argsort(kind="stable")[:k]
    tokens = reranker.encode_images([images[i] for i in candidates])
    logits = reranker.score_matrix([query], tokens)[0]
    reranked = candidates[(-logits).argsort(kind="stable")]
    table = Table(title=f'"{query}"', caption="the picture it describes is marked *")
    for name in ("rank", "base", "reranked"):
        table.add_column(name)
    for rank, pair in enumerate(zip(candidates[:5], reranked[:5], strict=True), start=1):
        shown = [source.image_id(i) + (" *" if i == PICTURE else "") for i in pair]
        table.add_row(str(rank), *shown)
    Console().print(table)


if __name__ == "__main__":
    start_with_huge_pages()
    run_program(main)
