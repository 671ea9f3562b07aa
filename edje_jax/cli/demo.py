"""`make demo`: train a small EDJE on the built-in scenes, calibrate and evaluate it, show a search.

Leaves `runs/demo/model/`, `runs/demo/eval/metrics.json` and `runs/demo/eval/report.html`. A second
call resumes, or only calibrates and evaluates if the training is done.
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
from edje_jax.cli.program import UsageError
from edje_jax.cli.tune import tune
from edje_jax.data.sources.registry import open_source
from edje_jax.evaluate.tuning import Choices
from edje_jax.search.reranker import Reranker
from edje_jax.training.loop import run
from edje_jax.training.tasks.edje import EdjeTask

log = logging.getLogger(__name__)

WORKDIR = Path("runs/demo")
FEATURES = WORKDIR / "features"
"""Folder of the backbone features of the training set, 0.3 GB, deleted after the training."""
GALLERY = "shapes:test"
TUNING_SET = "shapes:val"
"""Gallery that the calibration is fitted on."""
IMAGE = 7
"""The image of the gallery whose first caption is the search that is shown."""


def main(arguments: list[str]) -> int:
    """Train, evaluate, search.

    Raises:
        UsageError: there are arguments.
    """
    if arguments:
        raise UsageError("the demo takes no arguments; for runs of your own there is edje train")
    started, config = time.perf_counter(), load_config("demo")
    if not (WORKDIR / "model" / "config.json").exists():
        log.info(
            "training: %d steps on procedural scenes; Ctrl-C saves, a rerun goes on", config.steps
        )
        # Each scene is used nearly six times, so encoding it once saves more time than it takes.
        data = dataclasses.replace(config.data, cache_features=str(FEATURES))
        if not run(EdjeTask(dataclasses.replace(config, data=data), WORKDIR), WORKDIR):
            return 0
    shutil.rmtree(FEATURES, ignore_errors=True)
    log.info("calibrating on 200 captions and 200 scenes of %s", TUNING_SET)
    model = str(WORKDIR / "model")
    tune([model], TUNING_SET, Choices([100], ["bfloat16"], queries=200), save=True)
    log.info("evaluating on the 1,000 scenes and 5,000 captions of %s", GALLERY)
    evaluate_model(model, GALLERY, out=WORKDIR / "eval")
    show_search()
    log.info("done in %.0f s", time.perf_counter() - started)
    return 0


def show_search(images: int = 200, k: int = 10) -> None:
    """Print one query against a part of the gallery: the base's order beside the reranked one."""
    source = open_source(GALLERY)
    query = source.captions(IMAGE)[0]
    reranker = Reranker.from_pretrained(WORKDIR / "model")
    gallery = [source.image(i) for i in range(images)]
    similarity = reranker.embed_images(gallery) @ reranker.embed_texts([query])[0]
    candidates = (-similarity).argsort(kind="stable")[:k]
    ranked = reranker.rank(query, [gallery[i] for i in candidates])
    table = Table(title=f'"{query}"', caption="the image it describes is marked *")
    for name in ("rank", "base", "reranked", "score"):
        table.add_column(name)
    for rank, (base, best) in enumerate(zip(candidates[:5], ranked[:5], strict=True), start=1):
        shown = [
            source.image_id(i) + (" *" if i == IMAGE else "")
            for i in (base, candidates[best["corpus_id"]])
        ]
        table.add_row(str(rank), *shown, f"{best['score']:.3f}")
    Console().print(table)
