"""Recall against the rerank depth, and calibration, of one or more trained models.

    python benchmarks/rerank_depth.py runs/a/model runs/b/model --data shapes:test \
        [--queries 1000] [--tune shapes:val] [--out depth.json]

R@1, R@5 and R@10 at depths 5 to 200, both directions, as `eval.py --k-sweep` has them. With
`--queries N` only N captions and N images, spread evenly over the set, are asked for (all of it
stays in the gallery), which takes a fraction of the time. With `--tune SPEC` the weight of the
first stage and the calibration are those that suit the model best on that set at k = 100, as
`edje tune` has them, and their results on `--data` stand beside those without.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edje_jax.config.calibration import UNTUNED, Calibration
from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import merge_by_id
from edje_jax.evaluate.gallery import encode_gallery, pair_scorer
from edje_jax.evaluate.measure import calibration_metrics
from edje_jax.evaluation.calibration import calibrate
from edje_jax.evaluation.protocols import rerank_some
from edje_jax.evaluation.retrieval import DIRECTIONS, Retrieval
from edje_jax.search.reranker import Reranker

DEPTHS = (5, 10, 20, 50, 100, 200)
TUNED_AT = 100
PRECISION = 0.9


def main() -> None:
    """Measure every model, print tables, write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data", required=True, help="SPEC to measure on")
    parser.add_argument("--queries", type=int, default=0, help="captions, and images; 0: all")
    parser.add_argument("--depth", type=int, default=max(DEPTHS), help="largest depth")
    parser.add_argument("--tune", default="", help="SPEC to choose weight and calibration on")
    parser.add_argument("--out", default="", help="JSON file to write")
    options = parser.parse_args()
    depths = [k for k in DEPTHS if k <= options.depth]
    results = {}
    for model in options.models:
        began = time.perf_counter()
        reranker = Reranker.from_pretrained(model)
        calibration = UNTUNED
        if options.tune:
            tuned = retrieved(reranker, options.tune, options.queries, TUNED_AT)
            calibration = calibrate(*tuned, PRECISION)
        deep, *_ = retrieved(reranker, options.data, options.queries, max(depths))
        results[model] = measured(deep, calibration, depths)
        console = Console()
        console.print(table(model, results[model]))
        console.print(f"{time.perf_counter() - began:.0f} s", markup=False)
    if options.out:
        about = {"data": options.data, "queries": options.queries, "tuned_on": options.tune}
        Path(options.out).write_text(json.dumps({**about, "models": results}, indent=1) + "\n")


def retrieved(reranker: Reranker, data: str, queries: int, k: int):
    """`rerank_some` of a set, all of it with `queries` 0."""
    encoded = encode_gallery(reranker.runtime, merge_by_id(open_captioned(data)), 0.01)
    gallery, score = encoded.gallery, pair_scorer(reranker.runtime, encoded)
    texts, images = reranker.runtime.embed_texts(gallery.captions), encoded.embeddings
    return rerank_some(gallery, images, texts, score, k, queries or len(texts))


def measured(deep: Retrieval, calibration: Calibration, depths: list[int]) -> dict[str, Any]:
    """Recalls at every depth, without the first stage's cosine and with it; reliability at 100."""
    out: dict[str, Any] = {"similarity_weight": calibration.similarity_weight}
    for name, weight in (("alone", 0.0), ("mixed", calibration.similarity_weight)):
        out[name] = [
            {"k": k, **{key: getattr(deep.at(k, weight), key).metrics() for key in DIRECTIONS}}
            for k in depths
        ]
    if calibration.is_fitted:
        out["calibration"] = {
            "temperature": calibration.temperature,
            "bias": calibration.bias,
            "fitted": dict(calibration.fitted),
            "at": {
                str(k): calibration_metrics(deep.at(k, calibration.similarity_weight), calibration)
                for k in (10, TUNED_AT)
                if k <= max(depths)
            },
        }
    return out


def table(model: str, result: dict[str, Any]) -> Table:
    """R@1 at every depth, and the errors of calibration."""
    out = Table(title=model, title_justify="left")
    out.add_column("")
    depths = [one["k"] for one in result["alone"]]
    for k in depths:
        out.add_column(f"k={k}", justify="right")
    rows = [("alone", "R@1"), ("mixed", "R@1"), ("alone", "R@5"), ("alone", "R@10")]
    for key in DIRECTIONS:
        base = result["alone"][0][key]["base"]["R@1"]
        out.add_row(
            f"{key} base {base:.1f}, ceiling",
            *(f"{one[key]['ceiling']:.1f}" for one in result["alone"]),
        )
        for how, recall in rows:
            values = [one[key]["reranked"][recall] for one in result[how]]
            out.add_row(f"  {how} {recall}", *(f"{value:.1f}" for value in values))
        for k, one in result.get("calibration", {}).get("at", {}).items():
            before, after = one["uncalibrated"][key], one["calibration"][key]
            kept = one.get("min_score", {}).get(key, {})
            out.add_row(
                f"  ECE at {k}", f"{before['ece']:.3f}", f"{after['ece']:.3f}",
                f"first {after['first']['ece']:.3f}",
                *(f"{name} {value:.1f}" for name, value in kept.items()),
            )  # fmt: skip
    out.caption = f"weight {result['similarity_weight']}"
    return out


if __name__ == "__main__":
    main()
