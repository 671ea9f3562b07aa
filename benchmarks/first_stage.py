"""First stages of trained heads, beside the backbone's embeddings and codes that need no training.

    python benchmarks/first_stage.py runs/heads0 runs/heads1 --data blip:val.json \
        [--pool blip:train.json] [--queries 500] [--out first_stage.json] [--plot curve.png]

The workdirs are of `edje train first_stage`, on one and the same model. For each first stage:
recalls by itself with 95% intervals (images drawn anew; equal Hamming distances by expectation),
its gain over the backbone's embeddings or, for trained codes, over the best untrained ones of
the same length, and the coarse-to-fine curve: R@1 after its best 10 to 200 candidates were reranked
by match logit + weight * cosine of the backbone, with the interval of its difference to the
backbone's candidates and the milliseconds of a query. What needs fitting (means, rotations) is
fitted to the first workdir's training set. A candidate list is cut among equal distances at random.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.config.first_stage_run import FirstStageRun
from edje_jax.config.saved_run import read_run
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, open_gallery, pair_scorer
from edje_jax.evaluation.intervals import mean_intervals
from edje_jax.evaluation.protocols import Timed
from edje_jax.evaluation.retrieval import DIRECTIONS
from edje_jax.evaluation.tied_ranks import DEPTHS, ExpectedRecalls, first_stage_recalls
from edje_jax.first_stage.codes import Codes
from edje_jax.first_stage.exact import Exact
from edje_jax.first_stage.packing import pack
from edje_jax.first_stage.untrained import (
    UNTRAINED,
    CodeHeads,
    bytes_per_image,
    principal_directions,
    quantised,
)
from edje_jax.index.store import Store
from edje_jax.models.heads.first_stage import FirstStageHeads
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.training.tasks.first_stage import without_heads
from edje_jax.weights.folder import load_model

RERANKED = (10, 20, 50, 100, 200)
"""Depths of the coarse-to-fine curve."""
SEEDS = 3
"""Seeds of rotations and projections that are drawn."""


@dataclass(frozen=True)
class Stage:
    """Vectors by whose inner products a first stage ranks, and what they take on disk."""

    name: str
    texts: np.ndarray
    images: np.ndarray
    bytes: int
    bits: int | None = None
    trained: bool = False

    def recalls(self, asked: "Asked") -> dict[str, ExpectedRecalls]:
        """Recalls of both directions, of what is asked for."""
        captions, owner = asked.captions, asked.owner
        own = np.arange(len(self.images))
        return {
            "t2i": first_stage_recalls(
                self.texts[captions], self.images, owner[captions], own, DEPTHS
            ),
            "i2t": first_stage_recalls(
                self.images[asked.images], self.texts, asked.images, owner, DEPTHS
            ),
        }


@dataclass(frozen=True)
class Asked:
    """Queries: captions and images of a gallery, and the image of every caption."""

    captions: np.ndarray
    images: np.ndarray
    owner: np.ndarray


def main() -> None:
    """Measure, print tables, and write JSON and a plot if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR")
    parser.add_argument("--data", required=True, help="SPEC to ask with")
    parser.add_argument("--pool", help="SPEC whose images join the gallery")
    parser.add_argument("--queries", type=int, default=0, help="captions, and images; 0: all")
    parser.add_argument("--weight", type=float, default=0.0, help="of the cosine, in reranking")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG of the coarse-to-fine curve to write")
    options = parser.parse_args()
    models = [load_model(str(workdir)) for workdir in options.workdirs]
    runtime = JaxRuntime.of(without_heads(models[0]), "float32")
    encoded = encode_gallery(runtime, open_gallery(options.data, options.pool), 0.01)
    texts = runtime.embed_texts(encoded.gallery.captions)
    store = Store(index_of(options.workdirs[0]))
    fitted = np.asarray(store.embeddings), np.asarray(store.caption_embeddings)
    stages = list(untrained(encoded.embeddings, texts, *fitted, models[0].config.first_stage))
    for seed, model in enumerate(models):
        stages += trained(model, encoded, texts, seed)
    asked = queries(encoded, options.queries)
    reranked = Reranked(runtime, encoded, texts, asked, options.weight)
    results = measured(stages, asked, reranked)
    for key in DIRECTIONS:
        Console().print(table(results, key))
    about = {
        "data": options.data, "pool": options.pool, "images": len(encoded.embeddings),
        "captions": len(asked.captions), "images_asked": len(asked.images),
        "weight": options.weight, "machine": machine(),
    }  # fmt: skip
    if options.out:
        options.out.write_text(json.dumps({**about, "stages": results}, indent=1) + "\n")
    if options.plot:
        plot(options.plot, results, about)


def index_of(workdir: Path) -> Path:
    """Index of a run's training set."""
    run = read_run(workdir / "config.json")
    assert isinstance(run, FirstStageRun)
    return Path(run.index).expanduser() if run.index else workdir / "index"


def queries(encoded: EncodedGallery, count: int) -> Asked:
    """Captions, and images with captions, spread evenly; all of them for 0."""
    owner = encoded.gallery.caption_image
    captions, images = np.arange(len(owner)), np.unique(owner)

    def some(rows: np.ndarray) -> np.ndarray:
        chosen = np.linspace(0, len(rows) - 1, min(count or len(rows), len(rows)))
        return rows[np.unique(chosen.astype(int))]

    return Asked(some(captions), some(images), owner)


def untrained(
    images: np.ndarray, texts: np.ndarray, fit_images: np.ndarray, fit_texts: np.ndarray, heads: Any
) -> Iterator[Stage]:
    """The backbone's embeddings, smaller forms of them, and codes by heads without training."""
    width = images.shape[1]
    yield Stage("backbone", texts, images, 4 * width)
    for kind in ("float16", "int8"):
        sides = quantised(texts, kind), quantised(images, kind)
        yield Stage(f"backbone, {kind}", *sides, bytes_per_image(kind, width))
    for size in (8, 16, 32, 64):  # As large as codes of 64 to 512 bits
        kept = size - bytes_per_image("int8-pca", 0)
        if kept > width:
            continue
        directions = principal_directions(fit_images, kept)
        sides = tuple(quantised(side, "int8-pca", directions) for side in (texts, images))
        yield Stage(f"backbone, int8 of {kept} principal directions", sides[0], sides[1], size)
    lengths = heads.code_lengths if heads else ()
    for bits in lengths:
        for name, fit in UNTRAINED.items():
            if name != "random" and bits > width:
                continue
            for seed in range(1 if name == "sign" else SEEDS):
                made = fit(fit_images, fit_texts, bits, seed)
                yield of_codes(f"{name}, {bits} bits", made, texts, images, bits)
    # Every dimension's sign: the longest code that embeddings have without drawing anything.
    if width % 8 == 0 and width not in lengths:
        made = UNTRAINED["sign"](fit_images, fit_texts, width, 0)
        yield of_codes(f"sign, {width} bits", made, texts, images, width)


def of_codes(
    name: str, heads: CodeHeads, texts: np.ndarray, images: np.ndarray, bits: int
) -> Stage:
    """Codes by heads without training."""
    sides = signs(heads.project_texts(texts)), signs(heads.project_images(images))
    return Stage(name, *sides, bits // 8, bits)


def trained(model: Any, encoded: EncodedGallery, texts: np.ndarray, seed: int) -> Iterator[Stage]:
    """Embeddings and codes of every length by the heads of a model."""
    heads = FirstStageHeads(model.config.first_stage).bind({"params": model.heads})
    tokens = jnp.asarray(encoded.tokens) if model.config.first_stage.reads_tokens else None
    of_images = heads.of_images(jnp.asarray(encoded.embeddings), tokens)
    of_texts = heads.of_texts(jnp.asarray(texts))
    sides = np.asarray(of_texts.embeddings), np.asarray(of_images.embeddings)
    yield Stage("distilled", *sides, 4 * texts.shape[1], trained=True)
    for bits in model.config.first_stage.code_lengths:
        sides = tuple(
            signs(np.asarray(side.projections)[:, :bits]) for side in (of_texts, of_images)
        )
        yield Stage(f"trained, {bits} bits", sides[0], sides[1], bits // 8, bits, trained=True)


def signs(projections: np.ndarray) -> np.ndarray:
    """Codes as -1 and 1."""
    return np.where(projections > 0, np.float32(1), np.float32(-1))


class Reranked:
    """Match logits of candidates, each pair scored once, whichever first stages ask for it."""

    def __init__(
        self,
        runtime: JaxRuntime,
        encoded: EncodedGallery,
        texts: np.ndarray,
        asked: Asked,
        weight: float,
    ):
        self._score = Timed(pair_scorer(runtime, encoded))
        self._asked, self._weight = asked, weight
        self._texts, self._images = texts, encoded.embeddings
        shape = len(texts), len(encoded.embeddings)
        self._logits = np.full(shape, np.nan, np.float32)

    @property
    def pairs_per_second(self) -> float:
        """Rate of scoring, all pairs together."""
        return self._score.pairs / self._score.seconds

    def recalls(self, stage: Stage) -> dict[str, dict[int, np.ndarray]]:
        """Whether each query's best candidate is right, for every depth, {"t2i", "i2t"}."""
        asked = self._asked
        return {
            "t2i": self._direction(stage.texts[asked.captions], stage.images, asked.captions, True),
            "i2t": self._direction(stage.images[asked.images], stage.texts, asked.images, False),
        }

    def _direction(
        self, queries: np.ndarray, items: np.ndarray, numbers: np.ndarray, of_texts: bool
    ) -> dict[int, np.ndarray]:
        order = np.random.default_rng(0).permutation(len(items))
        near = queries @ items[order].T
        found = order[np.argsort(-near, axis=1, kind="stable")[:, : max(RERANKED)]]
        text, image = np.repeat(numbers, found.shape[1]), found.reshape(-1)
        if not of_texts:
            text, image = image, text
        self._fill(text, image)
        values = self._logits[text, image]
        if self._weight:
            values += self._weight * np.einsum("pe,pe->p", self._texts[text], self._images[image])
        values = values.reshape(found.shape)
        right = (self._asked.owner[text] == image).reshape(found.shape)
        out = {}
        for depth in RERANKED:
            best = values[:, :depth].argmax(axis=1)
            out[depth] = right[np.arange(len(right)), best].astype(float)
        return out

    def _fill(self, text: np.ndarray, image: np.ndarray) -> None:
        missing = np.isnan(self._logits[text, image])
        pairs = np.unique(np.stack([text[missing], image[missing]]), axis=1).astype(np.int32)
        if pairs.size:
            self._logits[pairs[0], pairs[1]] = self._score(pairs[0], pairs[1])


def measured(stages: list[Stage], asked: Asked, reranked: Reranked) -> list[dict[str, Any]]:
    """Results of every first stage, runs of one name together."""
    recalls = [stage.recalls(asked) for stage in stages]
    curves = [reranked.recalls(stage) for stage in stages]
    image = {"t2i": asked.owner[asked.captions], "i2t": asked.images}
    names = list(dict.fromkeys(stage.name for stage in stages))
    runs = {n: [i for i, stage in enumerate(stages) if stage.name == n] for n in names}
    results = []
    for name in names:
        first = stages[runs[name][0]]
        result: dict[str, Any] = {
            "name": name, "bytes": first.bytes, "bits": first.bits, "trained": first.trained,
            "runs": len(runs[name]), "search_ms": search_milliseconds(first),
            "rerank_ms_per_candidate": 1000 / reranked.pairs_per_second,
        }  # fmt: skip
        rival = best_rival(first, stages, recalls, runs)
        for key in DIRECTIONS:
            own = [recalls[i][key] for i in runs[name]]
            result[key] = {
                "recalls": [each.recalls for each in own],
                "mean": mean([each.recalls for each in own]),
                "interval": pooled(own).intervals(image[key]),
                "reranked": [
                    {
                        f"k={depth}": 100 * float(hits.mean())
                        for depth, hits in curves[i][key].items()
                    }
                    for i in runs[name]
                ],
                "reranked_less_backbone": {
                    f"k={depth}": less_backbone(curves, runs, name, key, depth, image)
                    for depth in RERANKED
                },
            }
            if rival and rival != name:
                before = pooled([recalls[i][key] for i in runs[rival]])
                result[key] |= {
                    "over": rival,
                    "gain": pooled(own).gain_intervals(before, image[key]),
                }
        results.append(result)
    return results


def less_backbone(
    curves: list[Any], runs: Mapping[str, list[int]], name: str, key: str, depth: int, image: Any
) -> tuple[float, float]:
    """95% interval of R@1 after reranking, less that of the backbone's candidates."""
    ours, theirs = (
        np.mean([curves[i][key][depth] for i in runs[each]], axis=0) for each in (name, "backbone")
    )
    return mean_intervals(100 * (ours - theirs)[:, None], image[key])[0]


def search_milliseconds(stage: Stage, count: int = 50) -> float:
    """Median milliseconds of an exact search for 100 images, one query at a time."""
    if stage.bits:
        found, asked = Codes.build(pack(stage.images)), pack(stage.texts[:count])
    else:
        found, asked = Exact.build(stage.images), stage.texts[:count]
    took = []
    for query in asked:
        began = time.perf_counter()
        found.nearest(query[None], min(100, len(stage.images)))
        took.append(time.perf_counter() - began)
    return 1000 * float(np.median(took))


def best_rival(
    stage: Stage, stages: list[Stage], recalls: list[Any], runs: Mapping[str, list[int]]
) -> str | None:
    """Name of what a trained stage is compared with: the backbone, or the best codes without
    training of the same length by text-to-image R@10."""
    if not stage.trained:
        return None
    if stage.bits is None:
        return "backbone"
    level = {
        name: float(np.mean([recalls[i]["t2i"].recalls["R@10"] for i in numbers]))
        for name, numbers in runs.items()
        if stages[numbers[0]].bits == stage.bits and not stages[numbers[0]].trained
    }
    return max(level, key=lambda name: level[name]) if level else None


def pooled(runs: list[ExpectedRecalls]) -> ExpectedRecalls:
    """The mean over runs of every query's chance, which is how a run drawn at random does."""
    hits = np.mean([run.hits for run in runs], axis=0)
    return ExpectedRecalls(runs[0].depths, hits, runs[0].answered)


def mean(values: list[dict[str, float]]) -> dict[str, float]:
    """Mean over runs."""
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


def table(results: list[dict[str, Any]], key: str) -> Table:
    """Table of one direction."""
    names = [f"R@{k}" for k in DEPTHS]
    out = Table("first stage", "bytes", *names, *(f"reranked {k}" for k in RERANKED), "gain R@10")
    for one in results:
        side = one[key]
        curve = mean(side["reranked"])
        gain = side.get("gain", {}).get("R@10")
        out.add_row(
            one["name"], f"{one['bytes']:,}",
            *(f"{side['mean'][name]:.1f}" for name in names),
            *(f"{curve[f'k={k}']:.1f}" for k in RERANKED),
            f"{gain[0]:+.1f} to {gain[1]:+.1f}" if gain else "",
        )  # fmt: skip
    out.title = DIRECTIONS[key]
    return out


def plot(path: Path, results: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """R@1 after reranking against the depth, for the backbone, the distilled and trained codes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [r for r in results if r["name"] == "backbone" or r["trained"]]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=False, layout="constrained")
    for axis, (key, title) in zip(axes, DIRECTIONS.items(), strict=True):
        for one in shown:
            curve = mean(one[key]["reranked"])
            label = f"{one['name']} ({one['bytes']:,} bytes)"
            style = "k--" if one["name"] == "backbone" else "-"
            axis.plot(RERANKED, [curve[f"k={k}"] for k in RERANKED], style, marker=".", label=label)
        axis.set_xscale("log")
        axis.set_xticks(RERANKED, [str(k) for k in RERANKED])
        axis.minorticks_off()
        axis.set_xlabel("candidates reranked")
        axis.set_title(f"{title}, {about['images']:,} images")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("R@1 after reranking, percent")
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
