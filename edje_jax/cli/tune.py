"""`edje tune`: which model, token dtype and depth to take, by what was measured on a set."""

import dataclasses
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edje_jax.cli.program import UsageError
from edje_jax.cli.progress import Bars
from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluation.pareto import pareto_front
from edje_jax.evaluation.retrieval import rerank
from edje_jax.inference.engine import Engine
from edje_jax.inference.gallery import EncodedGallery, encode_gallery, second_stage
from edje_jax.models.token_formats import PackedTokens, TokenDtype, pack, row_bytes
from edje_jax.retrieval.reranker import Reranker
from edje_jax.weights.files import replacing, write_json
from edje_jax.weights.folder import model_folder, read_model_config

log = logging.getLogger(__name__)

ROUNDS = 5
"""Timings of each choice, of which the median counts."""
QUERIES = 4
"""Queries that are timed together, each with its own k candidates."""


@dataclass(frozen=True)
class Choice:
    """A way to rerank, and what it gives and costs."""

    model: str
    deferred_layers: int
    token_dtype: TokenDtype
    k: int
    t2i: float
    """R@1 in percent, as `i2t`."""
    i2t: float
    bytes_per_picture: int
    pairs_per_second: float
    """Of queries with k candidates each, several at a time, on this machine."""

    @property
    def recall(self) -> float:
        """The mean of both directions' R@1."""
        return (self.t2i + self.i2t) / 2

    @property
    def queries_per_second(self) -> float:
        """Reranking alone."""
        return self.pairs_per_second / self.k


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
    `tune.json` and `tune.png`.

    Raises:
        UsageError: a depth is not positive, or there is no model or token dtype.
        FileNotFoundError, ValueError: a model or the set cannot be opened.
        TooManyBadPictures: more than `max_bad` of the pictures could not be read.
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
    source = open_captioned(data, image_root)
    choices: list[Choice] = []
    with Bars() as bars:
        for model in models:
            reranker = Reranker.from_pretrained(model)
            encoded = encode_gallery(reranker.engine, source, max_bad, bars.show)
            choices += measured(reranker, encoded, sorted(set(k)), token_dtypes, bars)
            if folder:
                save(choices, data, folder)
    Console().print(table(choices, front_of(choices), data))


def save(choices: Sequence[Choice], data: str, folder: Path) -> None:
    """Write what was measured so far."""
    front = front_of(choices)
    rows = [
        {**dataclasses.asdict(choice), "on_front": best}
        for choice, best in zip(choices, front, strict=True)
    ]
    write_json(folder / "tune.json", {"data": data, "choices": rows})
    draw(choices, front, folder / "tune.png")


def measured(
    reranker: Reranker,
    encoded: EncodedGallery,
    depths: Sequence[int],
    token_dtypes: Sequence[TokenDtype],
    bars: Bars,
) -> Iterator[Choice]:
    """One model's choices: scored once at the largest depth, timed at each."""
    joint = reranker.config.joint_encoder
    assert isinstance(encoded.tokens, np.ndarray)
    texts = reranker.engine.embed_texts(encoded.gallery.captions)
    for dtype in token_dtypes:
        tokens = pack(encoded.tokens, dtype)
        stored = dataclasses.replace(encoded, tokens=tokens)
        score = second_stage(reranker.engine, stored, bars.show)
        retrieval = rerank(encoded.gallery, encoded.embeddings, texts, score, max(depths))
        for k in depths:
            recalls = retrieval.at(k=k).metrics()
            yield Choice(
                reranker.source,
                joint.deferred_layers,
                dtype,
                k,
                recalls["t2i"]["reranked"]["R@1"],
                recalls["i2t"]["reranked"]["R@1"],
                row_bytes(dtype, reranker.config.num_tokens, joint.hidden_size),
                pairs_per_second(reranker.engine, encoded.gallery.captions, tokens, k),
            )


def pairs_per_second(
    engine: Engine, captions: Sequence[str], tokens: PackedTokens, k: int
) -> float:
    """Of the first captions, each with k pictures."""
    ids = engine.joint_tokenizer(captions[:QUERIES])
    text = np.repeat(np.arange(len(ids)), k)
    pictures = np.arange(len(text)) % len(tokens)

    def once() -> float:
        began = time.perf_counter()
        engine.score_pairs(ids, tokens, text, pictures)
        return time.perf_counter() - began

    once()  # Compiles
    return len(text) / statistics.median(once() for _ in range(ROUNDS))


def front_of(choices: Sequence[Choice]) -> list[bool]:
    """Which of them no other one beats in recall, queries per second and bytes together."""
    values = [(c.recall, c.queries_per_second, -c.bytes_per_picture) for c in choices]
    return pareto_front(values).tolist()


def table(choices: Sequence[Choice], front: Sequence[bool], data: str) -> Table:
    """All of them, best recall first."""
    title = f"R@1 on {data} against cost on this machine; * on the Pareto front"
    out = Table(title=title, title_justify="left")
    out.add_column("")
    out.add_column("model", overflow="fold")
    for name in ("s", "tokens", "k", "T2I", "I2T", "bytes", "pairs/s", "ms/query"):
        out.add_column(name, justify="right")
    for choice, best in sorted(zip(choices, front, strict=True), key=lambda x: -x[0].recall):
        out.add_row(
            "*" if best else "",
            short(choice.model),
            str(choice.deferred_layers),
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


def short(model: str) -> str:
    """A workdir's own name, of its path or its model folder's."""
    *_, above, name = ("", *Path(model).parts)
    return above if name == "model" and above else name


def draw(choices: Sequence[Choice], front: Sequence[bool], path: Path) -> None:
    """R@1 against milliseconds per query, a colour for each model, a mark for each dtype."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning('no %s, as matplotlib is not installed: pip install "edje-jax[eval]"', path)
        return
    marks = {"bfloat16": "o", "float16": "D", "int8": "^", "int4": "v"}
    names = list(dict.fromkeys(choice.model for choice in choices))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for choice, best in zip(choices, front, strict=True):
        colour, size, alpha = f"C{names.index(choice.model)}", 8 if best else 5, 1 if best else 0.4
        axes.plot(
            1e3 / choice.queries_per_second, choice.recall, marks[choice.token_dtype],
            color=colour, markersize=size, alpha=alpha,
        )  # fmt: skip
    for number, name in enumerate(names):
        layers = next(choice.deferred_layers for choice in choices if choice.model == name)
        axes.plot([], [], "s", color=f"C{number}", label=f"{short(name)} (s = {layers})")
    for dtype in dict.fromkeys(choice.token_dtype for choice in choices):
        axes.plot([], [], marks[dtype], color="grey", label=dtype)
    axes.set(xscale="log", xlabel="ms per query, reranking alone", ylabel="R@1, mean of both ways")
    axes.set_title("Full colour: on the Pareto front of R@1, time and bytes", fontsize="medium")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
