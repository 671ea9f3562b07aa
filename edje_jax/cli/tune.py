"""`edje tune`: which model, token dtype and depth to take, by what was measured on a set."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from edje_jax.cli.choice import Choice, front_of, layers, short_names
from edje_jax.cli.evaluate import told_after
from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.cli.tune_plot import draw
from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import joined
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, second_stage
from edje_jax.evaluation.retrieval import rerank
from edje_jax.models.token_formats import TokenDtype, pack, row_bytes
from edje_jax.search.reranker import Reranker
from edje_jax.system.files import write_json
from edje_jax.weights.folder import model_folder, read_model_config

log = logging.getLogger(__name__)

ROUNDS = 5
"""Timings of each choice, of which the median counts."""
QUERIES = 8
"""Captions that are timed together, from all over the set, each with its own k candidates."""

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
) -> None:
    """Measure every choice, print them with those on the Pareto front marked, and with `out` write
    `tune.json` and `tune.png`. A model that fails loses nothing of those before it.

    Raises:
        UsageError: a depth is not positive, or there is no model or token dtype.
        FileNotFoundError, ValueError: a model or the set cannot be opened.
        TooManyBadPictures: more than `max_bad` of the records are bad.
    """
    if not k or min(k) < 1:
        raise UsageError(f"--k {' '.join(map(str, k))}: give depths from 1 on")
    if not models or not token_dtypes:
        raise UsageError("give at least one model and one of --token-dtypes")
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
    try:
        with Bars() as bars:
            for model in models:
                reranker = Reranker.from_pretrained(model)
                encoded = encode_gallery(reranker.engine, source, max_bad, bars.show)
                scored += recalled(reranker, encoded, depths, token_dtypes, bars)
    finally:
        if scored:
            tell(timed(scored), data, folder)


def tell(choices: Sequence[Choice], data: str, folder: Path | None) -> None:
    """Print what was measured, and write it if there is a folder."""
    with told_after([table(choices, front_of(choices), data)]):
        if folder:
            save(choices, data, folder)


def save(choices: Sequence[Choice], data: str, folder: Path) -> None:
    """Write `tune.json` and `tune.png`."""
    front = front_of(choices)
    rows = [
        {**dataclasses.asdict(choice), "on_front": best}
        for choice, best in zip(choices, front, strict=True)
    ]
    write_json(folder / "tune.json", {"data": data, "choices": rows})
    draw(choices, front, folder / "tune.png")


def recalled(
    reranker: Reranker,
    encoded: EncodedGallery,
    depths: Sequence[int],
    token_dtypes: Sequence[TokenDtype],
    bars: Bars,
) -> Iterator[Scored]:
    """Choices of one model, scored once at the largest depth."""
    config, joint = reranker.config, reranker.config.joint_encoder
    assert isinstance(encoded.tokens, np.ndarray)
    captions = encoded.gallery.captions
    texts = reranker.engine.embed_texts(captions)
    asked = np.unique(np.linspace(0, len(captions) - 1, QUERIES).astype(int))
    ids = reranker.engine.joint_tokenizer([captions[i] for i in asked])
    # Timed later, when nothing but the joint encoder shall be held.
    engine = dataclasses.replace(reranker.engine, backbone_params={})
    for dtype in token_dtypes:
        tokens = pack(encoded.tokens, dtype)
        stored = dataclasses.replace(encoded, tokens=tokens)
        score = second_stage(reranker.engine, stored, bars.show)
        retrieval = rerank(encoded.gallery, encoded.embeddings, texts, score, max(depths))
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
                row_bytes(dtype, config.num_tokens, joint.hidden_size),
            )
            text = np.repeat(np.arange(len(ids)), k)
            pictures = np.arange(len(text)) % len(some)
            yield choice, len(text), partial(engine.score_pairs, ids, some, text, pictures)


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
    title = f"R@1 on {data} against cost on this machine, {QUERIES} queries at once; * on the front"
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
