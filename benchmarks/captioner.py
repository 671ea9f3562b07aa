"""A captioner that ranks, beside an EDJE on the same backbone, alone and together.

    python benchmarks/captioner.py --captioner runs/cap0 runs/cap1 --edje runs/edje0 runs/edje1 \
        --data shapes:test --choose-on shapes:val [--k 50] [--queries 1000] [--out captioner.json]

Models are given seed by seed; all were trained on one backbone, whose k nearest candidates every
row reranks. A captioner trained in both directions is read forward, backward and both ways, with
each of its scores. Weights of mixtures (z(h) + b z(cosine), and w z(EDJE) + (1 - w) z(captioner) +
b z(cosine), z-normalised over a query's candidates) are chosen on --choose-on, by the mean of R@1
of both directions; among equally good ones those with the least w, and then the least b. Recalls
are means over the seeds; intervals are of the difference to EDJE alone, from images drawn anew
(95%).
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from named_runs import check_backbones
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.data.buckets import batches
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, open_gallery, pair_scorer
from edje_jax.evaluation.intervals import mean_intervals
from edje_jax.models.captioner import Captioner
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.weights.folder import load_model

DEPTHS = (1, 5, 10)
SHARES = tuple(round(share / 10, 1) for share in range(11))
"""Weights of the EDJE in a mixture that are tried."""
COSINES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Weights of the cosine that are tried."""
BATCH = 256

Scores = dict[str, Float[np.ndarray, "q k"]]


@dataclass(frozen=True)
class Asked:
    """Queries of a direction and their candidates."""

    text: Int[np.ndarray, "q k"]
    """Caption of each pair."""
    image: Int[np.ndarray, "q k"]
    hits: Float[np.ndarray, "q k"]
    cosine: Float[np.ndarray, "q k"]
    owner: Int[np.ndarray, " q"]
    """Image that each query belongs to, of which intervals draw."""

    @property
    def ceiling(self) -> float:
        """Percentage of queries that have a right answer among their candidates."""
        return float(100.0 * self.hits.any(axis=1).mean())

    def found(self, scores: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q d"]:
        """100 where a right answer is among the best 1, 5, 10 by the scores; base order breaks
        ties."""
        order = np.argsort(-scores, axis=1, kind="stable")
        ranked = np.take_along_axis(self.hits, order, axis=1)
        return np.stack([100.0 * ranked[:, :depth].any(axis=1) for depth in DEPTHS], axis=1)


@dataclass(frozen=True)
class Scored:
    """Candidates of both directions of a gallery, with the scores of a pair of models."""

    asked: dict[str, Asked]
    scores: dict[str, Scores]
    """By direction: "edje", and the captioner's by direction of reading and kind of score."""

    @property
    def captioner(self) -> str:
        """Row of the captioner that mixtures take: "pmi" of all directions that it reads."""
        return [name for name in self.scores["t2i"] if name.endswith("pmi")][-1]

    def found(self, name: str, weights: tuple[float, float]) -> dict[str, np.ndarray]:
        """Hits by direction of a row: a score, or a mixture by the weights (share, cosine)."""
        share, cosine = weights
        out = {}
        for direction, asked in self.asked.items():
            scores = self.scores[direction]
            if name == "base":
                mixed = asked.cosine
            elif name == "mixed":
                mixed = share * normalised(scores["edje"])
                mixed = mixed + (1 - share) * normalised(scores[self.captioner])
                mixed = mixed + cosine * normalised(asked.cosine)
            else:
                mixed = normalised(scores[name]) + cosine * normalised(asked.cosine)
            out[direction] = asked.found(mixed)
        return out


def main() -> None:
    """Measure, print tables, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--captioner", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--edje", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--data", required=True, help="SPEC to report on")
    parser.add_argument("--pool", help="SPEC whose images join the gallery")
    parser.add_argument("--choose-on", required=True, help="SPEC to choose weights on")
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--queries", type=int, default=0, help="captions, and images; 0: all")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if len(options.captioner) != len(options.edje):
        parser.error("give as many captioners as EDJEs, seed by seed")
    rows: dict[str, list[dict[str, np.ndarray]]] = {}
    chosen: dict[str, list[tuple[float, float]]] = {}
    asked: dict[str, Asked] = {}
    for names in zip(options.captioner, options.edje, strict=True):
        models = [load_model(name) for name in names]
        try:
            check_backbones(names, models, models[0])
        except ValueError as error:
            parser.error(str(error))
        runtimes = [JaxRuntime.of(model, "float32") for model in models]
        settings = options.k, options.queries
        validation = scored(runtimes, open_gallery(options.choose_on, None), *settings)
        test = scored(runtimes, open_gallery(options.data, options.pool), *settings)
        asked = test.asked
        for name, row, weights in measured(validation, test):
            rows.setdefault(name, []).append(row)
            chosen.setdefault(name, []).append(weights)
    results = [summary(name, rows, chosen, asked) for name in rows]
    for direction in asked:
        Console().print(table(results, direction))
    if options.out:
        about = {
            "data": options.data, "choose_on": options.choose_on, "k": options.k,
            "captions": len(asked["t2i"].owner), "images": len(asked["i2t"].owner),
            "seeds": len(options.edje), "machine": machine(),
        }  # fmt: skip
        options.out.write_text(json.dumps({**about, "rows": results}, indent=1) + "\n", "utf-8")


def measured(
    validation: Scored, test: Scored
) -> Iterator[tuple[str, dict[str, np.ndarray], tuple[float, float]]]:
    """Yield (row, hits by direction, weights) of one seed; weights are chosen on `validation`."""
    plain = (1.0, 0.0)
    yield "base", test.found("base", plain), plain
    for name in test.scores["t2i"]:
        yield name, test.found(name, plain), plain
    for row, name, shares in (
        ("edje + cosine", "edje", (1.0,)),
        ("captioner + cosine", validation.captioner, (1.0,)),
        ("edje + captioner + cosine", "mixed", SHARES),
    ):
        options = list(product(shares, COSINES))
        best = max(options, key=lambda weights: float(recall(validation.found(name, weights))))
        yield row, test.found(name, best), best


def recall(found: Mapping[str, np.ndarray]) -> float:
    """Mean of R@1 of both directions."""
    return float(np.mean([hits[:, 0].mean() for hits in found.values()]))


def normalised(scores: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Mean 0 and deviation 1 over each query's candidates."""
    deviation = scores.std(axis=1, keepdims=True)
    return (scores - scores.mean(axis=1, keepdims=True)) / np.maximum(deviation, 1e-9)


def scored(runtimes: list[JaxRuntime], source: Any, k: int, queries: int) -> Scored:
    """Candidates by the first stage, scored by (captioner, EDJE)."""
    captioner, edje = runtimes
    encoded = [encode_gallery(runtime, source, 0.01) for runtime in runtimes]
    asked = candidates(encoded[0], captioner.embed_texts(encoded[0].gallery.captions), k, queries)
    score_by_edje = pair_scorer(edje, encoded[1])
    scores = {}
    for direction, one in asked.items():
        pairs = one.text.reshape(-1), one.image.reshape(-1)
        own = caption_scores(captioner, encoded[0], *pairs)
        own["edje"] = score_by_edje(*pairs)
        scores[direction] = {name: each.reshape(one.text.shape) for name, each in own.items()}
    return Scored(asked, scores)


def candidates(
    encoded: EncodedGallery, texts: Float[np.ndarray, "t e"], k: int, queries: int
) -> dict[str, Asked]:
    """The k nearest candidates of evenly chosen captions and images."""
    owner, cosines = encoded.gallery.caption_image, texts @ encoded.embeddings.T
    captions = evenly(len(texts), queries)
    images = evenly(np.unique(owner), queries)
    near = nearest(cosines[captions], k)
    own = np.broadcast_to(captions[:, None], near.shape)
    t2i = Asked(own, near, owner[own] == near, cosines[own, near], owner[captions])
    near = nearest(cosines.T[images], k)
    own = np.broadcast_to(images[:, None], near.shape)
    i2t = Asked(near, own, owner[near] == own, cosines[near, own], images)
    return {"t2i": t2i, "i2t": i2t}


def evenly(of: int | np.ndarray, count: int) -> Int[np.ndarray, " n"]:
    """So many numbers at even distances; all for 0."""
    numbers = np.arange(of) if isinstance(of, int) else of
    if not count or count >= len(numbers):
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, count).astype(int)]


def nearest(cosines: Float[np.ndarray, "q n"], k: int) -> Int[np.ndarray, "q k"]:
    """The k most similar, most similar first."""
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def caption_scores(
    runtime: JaxRuntime, encoded: EncodedGallery, text: np.ndarray, image: np.ndarray
) -> dict[str, Float[np.ndarray, " p"]]:
    """Scores of pairs by direction of reading and kind."""
    captioner = runtime.config.captioner
    assert captioner is not None and isinstance(runtime.model, Captioner)
    ids = runtime.joint_tokenizer(encoded.gallery.captions)
    read = partial(log_probabilities, runtime.model, runtime.params)
    alone = in_batches(lambda rows: read(ids[rows], None), np.arange(len(ids)))
    pairs = np.arange(len(text))
    beside = in_batches(lambda rows: read(ids[text[rows]], encoded.tokens[image[rows]]), pairs)
    length = (ids != runtime.config.joint_encoder.pad_token_id).sum(axis=1)[text] - 1
    parts = {name: (beside[:, i], alone[text, i]) for i, name in enumerate(captioner.reads)}
    if len(parts) == 2:
        parts["both"] = (beside.sum(axis=1), alone[text].sum(axis=1))
    out = {}
    for name, (given, without) in parts.items():
        out |= {
            f"{name} sum": given,
            f"{name} mean": given / length,
            f"{name} pmi": given - without,
        }
    return out


def in_batches(read: Any, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n r"]:
    """Results of all rows, a batch at a time."""
    parts = [np.asarray(read(some))[:count] for some, count in batches(rows, (BATCH,))]
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=0)
def log_probabilities(model: Captioner, params: Any, ids: Any, tokens: Any) -> jax.Array:
    """Sums of log p over a caption's tokens, [b, directions]."""
    found = model.bind({"params": params}).log_probabilities(jnp.asarray(ids), tokens)
    return jnp.sum(found.values, axis=2).T


def summary(
    name: str,
    rows: Mapping[str, list[dict[str, np.ndarray]]],
    chosen: Mapping[str, list[tuple[float, float]]],
    asked: Mapping[str, Asked],
) -> dict[str, Any]:
    """Recalls of a row, and the interval of its R@1 less that of EDJE alone."""
    out: dict[str, Any] = {"name": name, "weights": chosen[name]}
    for direction, one in asked.items():
        hits = np.mean([row[direction] for row in rows[name]], axis=0)
        gain = hits - np.mean([row[direction] for row in rows["edje"]], axis=0)
        low, high = mean_intervals(gain[:, :1], one.owner)[0]
        recalls = {f"R@{d}": float(x) for d, x in zip(DEPTHS, hits.mean(axis=0), strict=True)}
        by_seed = [float(row[direction][:, 0].mean()) for row in rows[name]]
        difference = {"mean": float(gain[:, 0].mean()), "interval": [low, high]}
        out[direction] = {**recalls, "R@1 by seed": by_seed, "R@1 less EDJE's": difference}
    return out


def table(results: list[dict[str, Any]], direction: str) -> Table:
    """Recalls of every row in one direction."""
    out = Table(direction.upper(), *(f"R@{depth}" for depth in DEPTHS), "R@1 less EDJE's")
    for row in results:
        one, gain = row[direction], row[direction]["R@1 less EDJE's"]
        low, high = gain["interval"]
        recalls = [f"{one[f'R@{depth}']:.1f}" for depth in DEPTHS]
        out.add_row(row["name"], *recalls, f"{gain['mean']:+.1f} [{low:+.1f}, {high:+.1f}]")
    return out


if __name__ == "__main__":
    main()
