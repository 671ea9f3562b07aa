"""Do order and direction count? Clips of the very same frames, told apart within their groups.

    python benchmarks/video_order.py --row "2 tokens a frame" runs/a0 runs/a1 runs/a2 \
        --row "16 tokens, the mean of the frames" runs/b0 runs/b1 runs/b2 \
        [--data moving-shapes:test] [--clips 500] [--out video_order.json]

A row has the models of one setting, seed by seed. A caption asks for its clip among the four to
eight clips of its group, and a clip for one of its captions among those of its group: by the first
stage (the mean of the frames' embeddings) and by the reranker. Similarities that are equal within
1e-4 count as a tie, by expectation. "all" asks among all clips, k = 50 candidates of the first
stage reranked. Intervals are of the gain over the first stage, from groups drawn anew (95%).
"told apart" takes pairs of clips that differ in one thing alone: which event comes first, or which
way an event of one kind runs; how often does the caption of one score higher with its own clip?
Equal scores count as half. Rows that the file of --out already has under other names stay in it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from captioner_choices import training_seconds
from jaxtyping import Bool, Float, Int
from named_runs import ROW, named_runs
from rich.console import Console
from rich.table import Table
from side_by_side import machine

from edje_jax.data.sources.registry import open_captioned
from edje_jax.data.sources.subset import Subset, merge_by_id
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery, evaluate, pair_scorer
from edje_jax.evaluation.intervals import mean_intervals
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.scenes.moving import MovingShapes
from edje_jax.types import Source
from edje_jax.weights.folder import load_model

EQUAL = 1e-4
"""Difference up to which similarities tie: means of the same frames differ by rounding."""
K = 50
TASKS = ("t2i", "i2t")


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--row", **ROW)
    parser.add_argument("--data", default="moving-shapes:test", help="SPEC of moving shapes")
    parser.add_argument("--clips", type=int, default=500, help="clips of the set, from the first")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    runs_of = named_runs(parser, options.row)
    clips = open_captioned(options.data)
    source, groups = some_groups(clips, options.clips)
    what = {
        (int(a), int(b)): difference(clips, int(a), int(b))
        for a, b in zip(*np.nonzero(groups[:, None] == groups[None]), strict=True)
    }
    about = {
        "data": options.data, "clips": len(groups), "groups": int(groups[-1]) + 1,
        "chance": {"t2i": chance(groups), "i2t": chance(groups)}, "machine": machine(),
    }  # fmt: skip
    kept = other_rows(options.out, about, list(runs_of))
    results = kept + [
        row_of(name, [measured(run, source, groups, what) for run in runs], groups)
        for name, runs in runs_of.items()
    ]
    Console().print(table(results))
    if options.out:
        options.out.write_text(json.dumps(about | {"rows": results}, indent=1) + "\n", "utf-8")


def other_rows(path: Path | None, about: dict[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """Rows of a file that was written before, for the same clips, but those of these names."""
    if path is None or not path.exists():
        return []
    before = json.loads(path.read_text("utf-8"))
    for key in ("data", "clips"):
        if before[key] != about[key]:
            raise SystemExit(f"{path}: its {key} is {before[key]}, not {about[key]}; name another")
    return [row for row in before["rows"] if row["name"] not in names]


def some_groups(source: Source, clips: int) -> tuple[Source, Int[np.ndarray, " n"]]:
    """(about so many clips of a gallery, in whole groups; number of each one's group)."""
    if not isinstance(source, MovingShapes):
        raise SystemExit("--data: give moving-shapes:val or moving-shapes:test")
    kept, groups = 0, []
    while kept < min(clips, len(source)):
        members = source.group(kept)
        groups += [groups[-1] + 1 if groups else 0] * len(members)
        kept = members.stop
    return merge_by_id(Subset(source, np.arange(len(source)) < kept)), np.array(groups)


def chance(groups: Int[np.ndarray, " n"]) -> float:
    """Percent of a guess within the groups, over clips; as many captions belong to each clip."""
    return float(100 * np.mean(1 / np.bincount(groups)[groups]))


def difference(clips: Source, a: int, b: int) -> str | None:
    """The one thing in which two clips of a group differ: "order", or the kind of the event that
    runs the other way; None if there are several or none."""
    assert isinstance(clips, MovingShapes)
    (clip, _), (other, _) = clips.clip(a), clips.clip(b)
    changed = [i for i in range(3) if clip.order[i] != other.order[i]]
    if len(changed) != 1:
        return None
    return "order" if changed == [0] else clip.events[changed[0] - 1].kind


def measured(
    run: str,
    source: Source,
    groups: Int[np.ndarray, " n"],
    what: dict[tuple[int, int], str | None],
) -> dict[str, Any]:
    """Hits of a model in percent, query by query, and what it takes."""
    model = load_model(run)
    runtime = JaxRuntime.of(model, "float32")
    encoded = encode_gallery(runtime, source, 0.0)
    found = evaluate(runtime, encoded, K).metrics()
    config = model.config
    return {
        **within_groups(runtime, encoded, groups, what),
        "all": {
            task: {side: found[task][side]["R@1"] for side in ("base", "reranked")}
            for task in TASKS
        },
        "frames": config.frames,
        "tokens": config.num_tokens,
        "bytes_per_video": 2 * config.num_tokens * config.joint_encoder.hidden_size,
        "seconds": training_seconds(Path(run) / "metrics.jsonl"),
    }


def within_groups(
    runtime: JaxRuntime,
    encoded: EncodedGallery,
    groups: Int[np.ndarray, " n"],
    what: dict[tuple[int, int], str | None],
) -> dict[str, Any]:
    """{"hits": {direction: {"base", "reranked": of each query in percent}} within its group, "told
    apart": {difference: percent of the pairs of clips with no other}}."""
    owner = encoded.gallery.caption_image
    caption, clip = np.nonzero(groups[owner][:, None] == groups[None])
    texts = runtime.embed_texts(encoded.gallery.captions)
    cosines = np.einsum("pe,pe->p", texts[caption], encoded.embeddings[clip])
    logits = pair_scorer(runtime, encoded)(caption, clip)
    right = owner[caption] == clip
    found = {
        task: {
            "base": hits(query, cosines, right, EQUAL),
            "reranked": hits(query, logits, right, 0.0),
        }
        for task, query in (("t2i", caption), ("i2t", clip))
    }
    own = np.zeros(len(owner))
    own[caption[right]] = logits[right]
    apart: dict[str, list[float]] = {}
    for c, other, logit in zip(caption, clip, logits, strict=True):
        if kind := what[int(owner[c]), int(other)]:
            apart.setdefault(kind, []).append((np.sign(own[c] - logit) + 1) / 2)
    return {
        "hits": found,
        "told apart": {kind: 100 * float(np.mean(won)) for kind, won in sorted(apart.items())},
    }


def hits(
    query: Int[np.ndarray, " p"],
    scores: Float[np.ndarray, " p"],
    right: Bool[np.ndarray, " p"],
    equal: float,
) -> Float[np.ndarray, " q"]:
    """Chance in percent that each query's first result is right; results within `equal` of the best
    come first with equal chances."""
    best = np.full(query.max() + 1, -np.inf)
    np.maximum.at(best, query, scores)
    first = scores >= best[query] - equal
    ties, found = np.bincount(query[first]), np.bincount(query[first & right], minlength=len(best))
    return 100.0 * found / ties


def row_of(name: str, runs: list[dict[str, Any]], groups: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """Means over seeds, and the interval of the gain of reranking."""
    first = runs[0]
    out = {"name": name} | {key: first[key] for key in ("frames", "tokens", "bytes_per_video")}
    out["seconds"] = [run["seconds"] for run in runs]
    out["told apart"] = {
        kind: float(np.mean([run["told apart"][kind] for run in runs]))
        for kind in first["told apart"]
    }
    for task in TASKS:
        mean = {
            side: np.mean([run["hits"][task][side] for run in runs], axis=0)
            for side in ("base", "reranked")
        }
        gain = mean["reranked"] - mean["base"]
        owner = np.repeat(groups, len(gain) // len(groups))
        low, high = mean_intervals(gain[:, None], owner)[0]
        out[task] = {
            **{side: float(values.mean()) for side, values in mean.items()},
            "reranked by seed": [float(run["hits"][task]["reranked"].mean()) for run in runs],
            "gain": {"mean": float(gain.mean()), "interval": [low, high]},
            "all": {
                side: float(np.mean([run["all"][task][side] for run in runs]))
                for side in ("base", "reranked")
            },
        }
    return out


def table(results: list[dict[str, Any]]) -> Table:
    """R@1 within groups of every row, in both directions."""
    heads = [f"{d} {what}" for d in ("T2I", "I2T") for what in ("base", "reranked", "gain", "all")]
    out = Table("row", "tokens", *heads)
    for row in results:
        cells = [row["name"], str(row["tokens"])]
        for task in TASKS:
            one, (low, high) = row[task], row[task]["gain"]["interval"]
            cells += [f"{one['base']:.1f}", f"{one['reranked']:.1f}"]
            cells.append(f"{one['gain']['mean']:+.1f} [{low:+.1f}, {high:+.1f}]")
            cells.append(f"{one['all']['base']:.1f} -> {one['all']['reranked']:.1f}")
        out.add_row(*cells)
    return out


if __name__ == "__main__":
    main()
