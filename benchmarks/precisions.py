"""Recall that is lost, and the order of logits that is kept, when products are int8.

    python benchmarks/precisions.py MODEL [MODEL ...] [--data SPEC ...] [--k 10]
                                    [--sides jax:int8 encoder:int8 onnx:int8] [--out FILE.json]

One --data for each model, or one for all. A side names a runtime and its precision; "encoder:int8"
encodes the images in int8 and scores in float32. All sides rerank by match logits the candidates
that float32 embeddings find. "agreement" is Spearman's correlation of a side's match logits with
float32's, over all pairs of a caption and its k candidates; R@1 comes with the 95% interval of its
change (bootstrap over images).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from edje_jax.data.sources.registry import open_captioned
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, pair_scorer
from edje_jax.evaluation.intervals import difference_intervals
from edje_jax.evaluation.retrieval import Retrieval, rerank
from edje_jax.runtimes.base import Runtime
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.search.reranker import Reranker
from edje_jax.weights.folder import load_model


def main() -> None:
    """Evaluate every side of every model, print tables, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "models", nargs="+", help="model folders, training workdirs, or shapes-demo"
    )
    parser.add_argument("--data", nargs="+", default=["shapes:test"])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--sides", nargs="+", default=["jax:int8", "encoder:int8", "onnx:int8"])
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    data = options.data * (len(options.models) if len(options.data) == 1 else 1)
    results = []
    for model, spec in zip(options.models, data, strict=True):
        results.append(compare(model, spec, options.k, options.sides))
        show(results[-1])
    if options.out:
        Path(options.out).write_text(json.dumps(results, indent=2) + "\n")


def compare(model: str, data: str, k: int, sides: list[str]) -> dict[str, Any]:
    """R@1 of a model in float32, and of every side with its interval and agreement."""
    loaded, source = load_model(model), open_captioned(data)
    runtime = JaxRuntime.of(loaded, "float32")
    encoded = encode_gallery(runtime, source, 0.01)
    plain = reranked(runtime, encoded, encoded, k)
    out: dict[str, Any] = {
        "model": Path(model).name, "data": data, "images": len(encoded.record), "k": k,
        "float32": {way: recall(plain, way) for way in ("t2i", "i2t")}, "sides": {},
    }  # fmt: skip
    for side in sides:
        part, precision = side.split(":")
        if part == "encoder":
            other: Runtime = JaxRuntime.of(loaded, "float32", precision)  # type: ignore[arg-type]
            kept = encode_gallery(other, source, 0.01)
        else:
            other = Reranker.from_pretrained(model, precision=precision, runtime=part).runtime
            kept = encoded
        out["sides"][side] = against(plain, reranked(other, kept, encoded, k), encoded)
    return out


def reranked(
    runtime: Runtime, encoded: EncodedGallery, float32: EncodedGallery, k: int
) -> Retrieval:
    """Candidates of the float32 embeddings, in the order of a side's match logits."""
    texts = runtime.embed_texts(encoded.gallery.captions)
    scorer = pair_scorer(runtime, encoded)
    return rerank(encoded.gallery, float32.embeddings, texts, scorer, k)


def against(plain: Retrieval, side: Retrieval, encoded: EncodedGallery) -> dict[str, Any]:
    """R@1 of a side, its change with an interval, and its agreement, both ways."""
    owners = {"t2i": encoded.gallery.caption_image, "i2t": range(len(encoded.record))}
    out: dict[str, Any] = {}
    for way in ("t2i", "i2t"):
        one, other = getattr(plain, way), getattr(side, way)
        changes = difference_intervals(
            one.reranked_rank, other.reranked_rank, np.asarray(owners[way])
        )
        out[way] = {
            "R@1": recall(side, way),
            "change": recall(side, way) - recall(plain, way),
            "interval": changes["R@1"],
            "agreement": float(spearmanr(one.scores.ravel(), other.scores.ravel()).statistic),
        }
    return out


def recall(retrieval: Retrieval, way: str) -> float:
    """R@1 after reranking, in percent."""
    return getattr(retrieval, way).metrics()["reranked"]["R@1"]


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    title = f"{result['model']}, {result['data']}, {result['images']} images, k = {result['k']}"
    table = Table(
        "", "T2I R@1", "change", "agreement", "I2T R@1", "change", "agreement", title=title
    )
    plain = [f"{result['float32'][way]:.2f}" for way in ("t2i", "i2t")]
    table.add_row("float32", plain[0], "", "", plain[1], "", "")
    for name, side in result["sides"].items():
        cells = []
        for way in ("t2i", "i2t"):
            low, high = side[way]["interval"]
            cells += [
                f"{side[way]['R@1']:.2f}", f"{side[way]['change']:+.2f} [{low:.2f}, {high:.2f}]",
                f"{side[way]['agreement']:.4f}",
            ]  # fmt: skip
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
