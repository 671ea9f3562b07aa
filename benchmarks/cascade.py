"""R@1 against milliseconds a query: first stage, EDJE, captioner, and one after the other.

    python benchmarks/cascade.py --edje runs/edje --captioner runs/captioner --data shapes:test \
        [--queries 500] [--weight 1.0] [--timed 5] [--rounds 5] [--out cascade.json]

Texts look for images among all of the set's, with the first stage of the EDJE. Recalls are those of
N captions, spread evenly over the set. Times are those of one query after the other, with tokens in
memory; every step is timed alone, in turns with the others, and a way to search costs the sum of
its steps' medians. With `--weight` below 1 the last step pools both models' logits, as `edje eval
MODEL --then MODEL2 --then-weight W` does; this program chooses no weight, but `edje eval MODEL
--then MODEL2 --choose-on SPEC` does. With --out, a plot lies beside.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from side_by_side import machine, timed

from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import merge_by_id
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery
from edje_jax.evaluate.second_model import calibrated_scorer
from edje_jax.evaluation.combination import pool_logits
from edje_jax.evaluation.retrieval import top_k
from edje_jax.evaluation.tuning import pareto_front
from edje_jax.search.reranker import Reranker
from edje_jax.system.allocator import keep_freed_memory

DEPTHS, SECOND_DEPTHS = (10, 20, 50, 100), (5, 10, 20)
WAYS = ("first stage", "EDJE", "captioner", "EDJE, then captioner")
LABELS = (((-2, 8), "right"), ((4, -12), "left"), ((-2, 18), "right"), ((4, -22), "left"))
"""Place of a label in points beside its mark, and the side of it that is there."""


class Side(NamedTuple):
    """A model, and the gallery as it has encoded it."""

    reranker: Reranker
    encoded: EncodedGallery


class Way(NamedTuple):
    """A way to search, with what it finds and costs."""

    name: str
    k: int
    """Candidates that the first model of the way scores; 0 without one."""
    k2: int
    """Candidates that the captioner scores after the EDJE; 0 where it does not."""
    recall: float
    """R@1 in percent."""
    milliseconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write JSON and a plot if asked to."""
    options = parser().parse_args(arguments)
    keep_freed_memory()
    source = merge_by_id(open_captioned(options.data))
    sides = {}
    for name in ("edje", "captioner"):
        reranker = Reranker.from_pretrained(getattr(options, name))
        sides[name] = Side(reranker, encode_gallery(reranker.runtime, source, 0.01))
    total = len(sides["edje"].encoded.gallery.captions)
    asked = np.unique(np.linspace(0, total - 1, min(options.queries, total)).astype(np.int32))
    depths = fitting(DEPTHS, len(sides["edje"].encoded.record))
    seconds = step_seconds(sides, asked[:: -(-len(asked) // options.timed)], depths, options.rounds)
    steps = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    candidates, scores = score_candidates(sides, asked, max(depths))
    hits = sides["edje"].encoded.gallery.caption_image[asked][:, None] == candidates
    found = ways(hits, scores, steps, options.weight)
    Console().print(table(found, steps))
    if options.out:
        out = Path(options.out)
        result = {
            "machine": machine(),
            "queries": len(asked),
            "images": len(sides["edje"].encoded.record),
            "weight": options.weight,
            "models": {name: described(side.reranker) for name, side in sides.items()},
            "steps_ms": {name: [1e3 * one for one in all_] for name, all_ in seconds.items()},
            "pairs_per_second": pairs_per_second(steps),
            "ways": [way._asdict() for way in found],
        }
        out.write_text(json.dumps(result, indent=1) + "\n")
        plot(found, out.with_suffix(".png"))


def parser() -> argparse.ArgumentParser:
    """Options of the command."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--edje", required=True, metavar="MODEL")
    made.add_argument("--captioner", required=True, metavar="MODEL")
    made.add_argument("--data", required=True, help="SPEC to measure on")
    made.add_argument("--queries", type=int, default=500, help="captions whose recall counts")
    made.add_argument("--weight", type=float, default=1.0, help="captioner's, behind the EDJE")
    made.add_argument("--timed", type=int, default=5, help="captions that are timed")
    made.add_argument("--rounds", type=int, default=5, help="timings of every step")
    made.add_argument("--out", default="", help="JSON file to write, and a plot beside it")
    return made


def fitting(depths: Sequence[int], most: int) -> list[int]:
    """Depths in a gallery of `most` images."""
    return sorted({min(depth, most) for depth in depths})


def step_seconds(
    sides: dict[str, Side], queries: Int[np.ndarray, " t"], depths: Sequence[int], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each step for one query, by "first stage" and (model, candidates)."""
    edje = sides["edje"]
    captions, embeddings = edje.encoded.gallery.captions, edje.encoded.embeddings
    texts = [captions[query] for query in queries]

    def first_stage() -> None:
        for text in texts:
            top_k(edje.reranker.embed_texts([text]) @ embeddings.T, max(depths))

    steps: dict[str, Callable[[], None]] = {"first stage": first_stage}
    for name, side in sides.items():
        also = fitting(SECOND_DEPTHS, max(depths)) if name == "captioner" else []
        for k in sorted({*depths, *also}):
            steps[f"{name} {k}"] = scoring(side, texts, k)
    return {
        name: [one / len(texts) for one in values] for name, values in timed(steps, rounds).items()
    }


def scoring(side: Side, texts: Sequence[str], k: int) -> Callable[[], None]:
    """Scoring of k candidates of each text, one text after the other."""
    runtime, zeros = side.reranker.runtime, np.zeros(k, np.int64)
    cosines = np.zeros(k, np.float32)

    def score() -> None:
        for number, text in enumerate(texts):
            rows = (np.arange(k) + 7 * number) % len(side.encoded.record)
            ids = runtime.joint_tokenizer([text])
            runtime.score_pairs(ids, side.encoded.tokens, zeros, rows, cosines)

    return score


def score_candidates(
    sides: dict[str, Side], asked: Int[np.ndarray, " q"], k: int
) -> tuple[Int[np.ndarray, "q k"], dict[str, Float[np.ndarray, "q k"]]]:
    """k nearest images of each caption, and both models' calibrated logits of them."""
    edje = sides["edje"]
    texts = edje.reranker.embed_texts([edje.encoded.gallery.captions[i] for i in asked])
    candidates = top_k(texts @ edje.encoded.embeddings.T, k)
    text_index, image_index = np.repeat(asked, k), candidates.reshape(-1).astype(np.int32)
    scores = {}
    for name, side in sides.items():
        score = calibrated_scorer(side.reranker.runtime, side.encoded, side.reranker.calibration)
        scores[name] = score(text_index, image_index).reshape(candidates.shape)
    return candidates, scores


def ways(
    hits: np.ndarray, scores: dict[str, np.ndarray], steps: dict[str, float], weight: float
) -> list[Way]:
    """All ways to search; `hits` tells which candidates are right, and `steps` milliseconds."""
    found = [Way("first stage", 0, 0, recall(hits[:, :1]), steps["first stage"])]
    depths = fitting(DEPTHS, hits.shape[1])
    for name, model in (("EDJE", "edje"), ("captioner", "captioner")):
        for k in depths:
            best = ordered(scores[model][:, :k])[:, :1]
            cost = steps["first stage"] + steps[f"{model} {k}"]
            found.append(Way(name, k, 0, recall(np.take_along_axis(hits, best, axis=1)), cost))
    for k in depths:
        order = ordered(scores["edje"][:, :k])
        for k2 in (k2 for k2 in SECOND_DEPTHS if k2 <= k):
            few = order[:, :k2]
            first, second = (
                np.take_along_axis(scores[model], few, axis=1) for model in ("edje", "captioner")
            )
            best = ordered(pool_logits(first, second, weight))[:, :1]
            right = np.take_along_axis(hits, np.take_along_axis(few, best, axis=1), axis=1)
            cost = steps["first stage"] + steps[f"edje {k}"] + steps[f"captioner {k2}"]
            found.append(Way("EDJE, then captioner", k, k2, recall(right), cost))
    return found


def ordered(scores: Float[np.ndarray, "q k"]) -> Int[np.ndarray, "q k"]:
    """Places of falling scores; equal ones keep their order."""
    return np.argsort(-scores, axis=1, kind="stable")


def recall(first: np.ndarray) -> float:
    """R@1 in percent of the first results."""
    return float(100 * np.mean(first))


def pairs_per_second(steps: dict[str, float]) -> dict[str, float]:
    """Pairs that each model scores in a second, at its largest depth."""
    out = {}
    for name, milliseconds in steps.items():
        model, _, k = name.rpartition(" ")
        if k.isdigit():  # Depths rise, and the last stays.
            out[model] = 1e3 * int(k) / milliseconds
    return out


def described(reranker: Reranker) -> dict[str, Any]:
    """Shape of a model."""
    config = reranker.config
    joint, captioner = config.joint_encoder, config.captioner
    return {
        "kind": config.kind,
        "tokens": config.num_tokens,
        "width": joint.hidden_size,
        "layers": joint.num_hidden_layers,
        "parameters": reranker.num_parameters,
        "calibrated": reranker.calibration.is_fitted,
        **({"score": captioner.score, "directions": captioner.directions} if captioner else {}),
    }


def on_front(found: Sequence[Way]) -> list[bool]:
    """Whether no other way is as good and cheaper, or better and as cheap."""
    return pareto_front([(way.recall, -way.milliseconds) for way in found]).tolist()


def table(found: Sequence[Way], steps: dict[str, float]) -> Table:
    """Table of all ways, cheapest first."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in pairs_per_second(steps).items())
    out = Table(title=f"T2I R@1 against milliseconds a query; pairs a second: {rates}")
    for name in ("way", "k", "k2", "R@1", "ms a query", "front"):
        out.add_column(name, justify="left" if name == "way" else "right")
    rows = sorted(zip(found, on_front(found), strict=True), key=lambda row: row[0].milliseconds)
    for way, best in rows:
        depths = (str(k) if k else "" for k in (way.k, way.k2))
        numbers = f"{way.recall:.2f}", f"{way.milliseconds:.2f}"
        out.add_row(way.name, *depths, *numbers, "*" if best else "")
    return out


def plot(found: Sequence[Way], path: Path) -> None:
    """Draw R@1 against milliseconds, with the Pareto front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, mark in zip(WAYS, "sov*", strict=True):
        own = [way for way in found if way.name == name]
        axes.plot([w.milliseconds for w in own], [w.recall for w in own], mark, label=name)
    best = sorted(way for way, front in zip(found, on_front(found), strict=True) if front)
    best.sort(key=lambda way: way.milliseconds)
    axes.plot([w.milliseconds for w in best], [w.recall for w in best], ":", color="grey", zorder=0)
    for number, way in enumerate(best):
        label = f"{way.k}" + (f", then {way.k2}" if way.k2 else "") if way.k else ""
        at = way.milliseconds, way.recall
        # Labels of neighbours stand at four heights in turns, so that none covers another.
        place, side = LABELS[number % len(LABELS)]
        axes.annotate(label, at, place, fontsize=8, textcoords="offset points", ha=side)
    axes.set(xscale="log", xlabel="milliseconds a query", ylabel="R@1, text to image (percent)")
    ticks = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=112)
    slowest = max(way.milliseconds for way in found)
    axes.set_xlim(min(way.milliseconds for way in found) / 1.3, slowest * 1.3)
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
