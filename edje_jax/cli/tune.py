"""`edje tune`: which model, token dtype and depth to take, by what was measured on a set, and the
calibration that suits each model there."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from edje_jax.cli.choice import Choice, front_of, layers, short_names
from edje_jax.cli.evaluate import told_after
from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.cli.tune_plot import draw
from edje_jax.config.calibration import Calibration
from edje_jax.config.model import TokenDtype
from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import joined
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, second_stage
from edje_jax.evaluation.calibration import calibrate
from edje_jax.evaluation.protocols import rerank_some
from edje_jax.evaluation.retrieval import DIRECTIONS, Retrieval
from edje_jax.models.token_formats import FORMATS, pack
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import read_json, write_json
from edje_jax.weights.calibration import NAME as CALIBRATION
from edje_jax.weights.calibration import write_calibration
from edje_jax.weights.folder import model_folder, read_model_config

log = logging.getLogger(__name__)

ROUNDS = 5
"""Timings of each choice, of which the median counts."""
QUERIES = 8
"""Captions that are timed together, from all over the set, each with its own k candidates."""

Asked = tuple[Retrieval, np.ndarray, np.ndarray]
"""A retrieval, and the image of each query of its two directions."""

Scored = tuple[Choice, int, Callable[[], object]]
"""A choice, so many pairs of a few queries, and their reranking, to be timed."""


def tune(
    models: Sequence[str],
    data: str,
    *,
    k: Sequence[int],
    token_dtypes: Sequence[TokenDtype],
    out: str = "",
    image_root: str = "",
    max_bad: float = 0.01,
    precision: float = 0.9,
    save: bool = False,
    queries: int = 0,
) -> None:
    """Measure every choice, print them with those on the Pareto front marked, and with `out` write
    `tune.json` and `tune.png`. A model that fails loses nothing of those before it.

    Each model's calibration is fitted at the largest depth with the first of the token dtypes; with
    `save` it is written into the model's folder. `queries` is the number of captions, and of
    images, that are asked for; 0 asks for all.

    Raises:
        UsageError: a depth is not positive, there is no model or token dtype, `precision` is no
            share, `queries` is negative, or a calibration cannot be saved to a hub id.
        FileNotFoundError, ValueError: a model or the set cannot be opened.
        TooManyBadPictures: more than `max_bad` of the records are bad.
    """
    if not k or min(k) < 1:
        raise UsageError(f"--k {' '.join(map(str, k))}: give depths from 1 on")
    if not models or not token_dtypes:
        raise UsageError("give at least one model and one of --token-dtypes")
    if not 0 < precision <= 1:
        raise UsageError(f"--precision {precision:g}: a share above 0, up to 1")
    if queries < 0:
        raise UsageError(f"--queries {queries}: give a number, or 0 for all")
    for model in models if save else ():
        if not Path(model).expanduser().is_dir():
            raise UsageError(f"--save: {model} is no folder here; download it, and name the folder")
    folder = Path(out).expanduser() if out else None
    # Whatever cannot be is told before the work.
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        read_model_config(model_folder(model))
    source = joined(open_captioned(data, image_root))
    depths = sorted({min(depth, len(source)) for depth in k})
    if max(k) > len(source):
        log.warning("--k %d: all of the %d pictures are reranked", max(k), len(source))
    scored: list[Scored] = []
    calibrations: dict[str, Calibration] = {}
    try:
        with Bars() as bars:
            for model in models:
                reranker = Reranker.from_pretrained(model)
                encoded = encode_gallery(reranker.engine, source, max_bad, bars.show)
                found, first = recalled(reranker, encoded, depths, token_dtypes, queries, bars)
                scored += found
                warn_of_training_data(model, data)
                fitted = fitted_to(first, precision, data)
                if fitted:
                    calibrations[model] = fitted
                if fitted and save:
                    write_calibration(model_folder(model), fitted)
                    log.info("wrote %s", model_folder(model) / CALIBRATION)
    finally:
        if scored:
            tell(timed(scored), calibrations, data, folder)


def warn_of_training_data(model: str, data: str) -> None:
    """Say so where a workdir tells that its model was trained on the set."""
    path = model_folder(model).parent / "config.json"
    run = read_json(path) if path.exists() else {}
    trained_on = run.get("data", {}).get("train", "") if isinstance(run.get("data"), dict) else ""
    if data in str(trained_on).split("+"):
        log.warning(
            "%s was trained on %s: what is fitted there is too confident elsewhere; give a set that"
            " it has not seen",
            model, data,
        )  # fmt: skip


def fitted_to(asked: Asked, precision: float, data: str) -> Calibration | None:
    """The calibration that suits a retrieval, if its scores tell right from wrong."""
    try:
        found = calibrate(*asked, precision)
    except ValueError as error:
        log.warning("no calibration: %s", error)
        return None
    return dataclasses.replace(found, fitted={"data": data, **found.fitted})


def tell(
    choices: Sequence[Choice],
    calibrations: dict[str, Calibration],
    data: str,
    folder: Path | None,
) -> None:
    """Print what was measured, and write it if there is a folder."""
    names = short_names([choice.model for choice in choices])
    tables = [table(choices, front_of(choices), data)]
    tables += [calibration_table(names[model], found) for model, found in calibrations.items()]
    with told_after(tables):
        if folder:
            write_tuning(choices, calibrations, data, folder)


def write_tuning(
    choices: Sequence[Choice], calibrations: dict[str, Calibration], data: str, folder: Path
) -> None:
    """Write `tune.json` and `tune.png`."""
    front = front_of(choices)
    rows = [
        {**dataclasses.asdict(choice), "on_front": best}
        for choice, best in zip(choices, front, strict=True)
    ]
    told: dict[str, Any] = {"data": data, "choices": rows}
    told["calibrations"] = {
        model: dataclasses.asdict(found) for model, found in calibrations.items()
    }
    write_json(folder / "tune.json", told)
    draw(choices, front, folder / "tune.png")


def recalled(
    reranker: Reranker,
    encoded: EncodedGallery,
    depths: Sequence[int],
    token_dtypes: Sequence[TokenDtype],
    queries: int,
    bars: Bars,
) -> tuple[list[Scored], Asked]:
    """(choices of one model, scored once at the largest depth; the retrieval at that depth with
    the first of the dtypes, without the first stage's cosine)."""
    config, joint = reranker.config, reranker.config.joint_encoder
    assert isinstance(encoded.tokens, np.ndarray)
    captions = encoded.gallery.captions
    texts = reranker.engine.embed_texts(captions)
    some_captions = np.unique(np.linspace(0, len(captions) - 1, QUERIES).astype(int))
    ids = reranker.engine.joint_tokenizer([captions[i] for i in some_captions])
    # Timed later, when nothing but the joint encoder shall be held.
    engine = dataclasses.replace(reranker.engine, backbone_params={})
    found: list[Scored] = []
    every: list[Asked] = []
    for dtype in token_dtypes:
        tokens = pack(encoded.tokens, dtype)
        stored = dataclasses.replace(encoded, tokens=tokens)
        score = second_stage(reranker.engine, stored, bars.show)
        asked = encoded.gallery, encoded.embeddings, texts, score, max(depths)
        every.append(rerank_some(*asked, queries or len(captions)))
        retrieval = every[-1][0]
        some = tokens[np.arange(min(len(tokens), max(depths)))]
        for k in depths:
            recalls = retrieval.at(k=k).metrics()
            choice = Choice(
                reranker.source,
                joint.deferred_layers,
                joint.online_vision,
                dtype,
                k,
                recalls["t2i"]["reranked"]["R@1"],
                recalls["i2t"]["reranked"]["R@1"],
                FORMATS[dtype].bytes_per_image(config.num_tokens, joint.hidden_size),
            )
            text = np.repeat(np.arange(len(ids)), k)
            pictures = np.arange(len(text)) % len(some)
            known = np.zeros(len(text), np.float32)
            run = partial(engine.score_pairs, ids, some, text, pictures, known)
            found.append((choice, len(text), run))
    return found, every[0]


def timed(scored: Sequence[Scored]) -> list[Choice]:
    """All choices in turns, so that what slows the machine for a while slows all."""
    seconds: list[list[float]] = [[] for _ in scored]
    with Bars() as bars:
        for number in range(ROUNDS + 1):
            for (*_, run), own in zip(scored, seconds, strict=True):
                began = time.perf_counter()
                run()
                if number:  # The first compiles
                    own.append(time.perf_counter() - began)
            bars.show("timings", number, ROUNDS)
    return [
        dataclasses.replace(
            choice,
            pairs_per_second=pairs / statistics.median(own),
            slowest_pairs_per_second=pairs / max(own),
            fastest_pairs_per_second=pairs / min(own),
        )
        for (choice, pairs, _), own in zip(scored, seconds, strict=True)
    ]


def table(choices: Sequence[Choice], front: Sequence[bool], data: str) -> Table:
    """All of them, best recall first."""
    title = (
        f"R@1 of match logits alone on {data} against cost on this machine, {QUERIES} queries at"
        " once; * on the front"
    )
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    out.add_column("", min_width=1)
    out.add_column("model", overflow="fold", min_width=10)
    for name in ("s", "tokens", "k", "T2I", "I2T", "bytes", "pairs/s", "ms/query"):
        out.add_column(name, justify="right", no_wrap=True)
    names = short_names([choice.model for choice in choices])
    for choice, best in sorted(zip(choices, front, strict=True), key=lambda x: -x[0].recall):
        out.add_row(
            "*" if best else "",
            names[choice.model],
            layers(choice),
            choice.token_dtype,
            str(choice.k),
            f"{choice.t2i:.2f}",
            f"{choice.i2t:.2f}",
            f"{choice.bytes_per_picture:,}",
            f"{choice.pairs_per_second:,.0f}",
            f"{1e3 / choice.queries_per_second:.1f}",
            style="bold" if best else "",
        )
    return out


def calibration_table(model: str, found: Calibration) -> Table:
    """A model's calibration, and what it changes."""
    record = found.fitted
    title = f"Calibration of {model} on {record['data']}, k = {record['k']}"
    out = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_header=False)
    out.caption = "-> from the logit alone to the calibrated score; errors of images not fitted on"
    out.caption_justify = "left"
    for name in ("similarity_weight", "temperature", "bias"):
        out.add_row(name.replace("_", " "), f"{getattr(found, name):.3g}")
    for key, label in DIRECTIONS.items():
        recalls = " -> ".join(f"{value:.1f}" for value in record["recall_at_1"][key])
        out.add_row(f"R@1, {label.lower()}", recalls)
    for key, label in DIRECTIONS.items():
        errors = ("?" if value is None else f"{value:.3f}" for value in record["ece"][key])
        out.add_row(f"expected calibration error, {label.lower()}", " -> ".join(errors))
    least = "none" if found.least_score is None else f"{found.least_score:.3f}"
    out.add_row(f"least score for {100 * record['precision']:g} % right", least)
    kept = " and ".join(f"{record['recall_kept'][key]:.1f}" for key in DIRECTIONS)
    out.add_row("right answers that reach it, % of queries", kept)
    return out
