"""Files of an evaluation for programs: metrics, TREC runs and qrels, and ranks query by query.

Every file is written under another name and then renamed, so that a file that is there is whole;
`metrics.json` comes last.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edje_jax.evaluation import trec
from edje_jax.evaluation.compare import Evaluation
from edje_jax.evaluation.measures import measure_ranks
from edje_jax.evaluation.retrieval import DIRECTIONS, Direction, Gallery, Retrieval
from edje_jax.system.files import atomic_text

PER_QUERY = (
    "direction",
    "query_id",
    "query_text",
    "base_rank",
    "reranked_rank",
    "best_positive_score",
    "top1_before",
    "top1_after",
)
"""Columns of `per_query.csv`."""


def write_metrics(
    out: str | Path,
    retrieval: Retrieval,
    gallery: Gallery,
    *,
    model: str,
    data: str,
    seconds: Mapping[str, float],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write `metrics.json`, the TREC runs and qrels and `per_query.csv`; return the metrics.

    `extra` adds keys to `metrics.json` (the resolved config, say). Queries without a right answer
    stand in none of the files.

    Raises:
        ValueError: `extra` has a key that `metrics.json` has already, or a value is NaN.
        OSError: a file cannot be written; none is left half-written.
    """
    out, metrics = Path(out), retrieval.metrics()
    content = {
        "k": metrics["k"],
        "model": model,
        "data": data,
        "pictures": len(gallery.image_ids),
        "captions": len(gallery.captions),
        "gallery": gallery.fingerprint,
        "similarity_weight": retrieval.similarity_weight,
        **{key: metrics[key] for key in DIRECTIONS},
        "seconds": dict(seconds),
    }
    if taken := sorted(set(extra or ()) & set(content)):
        raise ValueError(f"metrics.json says {', '.join(taken)} itself; rename it in `extra`")
    text = json.dumps({**content, **(extra or {})}, indent=2, ensure_ascii=False, allow_nan=False)

    out.mkdir(parents=True, exist_ok=True)
    ids = {
        "t2i": (gallery.text_ids, gallery.image_ids),
        "i2t": (gallery.image_ids, gallery.text_ids),
    }
    for key in DIRECTIONS:
        direction = getattr(retrieval, key)
        _write(out / f"{key}.qrels", trec.qrels_lines(gallery, key))
        _write(out / f"{key}.base.run", trec.base_run(direction, *ids[key]))
        _write(out / f"{key}.run", trec.reranked_run(direction, *ids[key]))
    with atomic_text(out / "per_query.csv") as file:
        rows = csv.writer(file)
        rows.writerow(PER_QUERY)
        for key in DIRECTIONS:
            texts = gallery.captions if key == "t2i" else [""] * len(gallery.image_ids)
            rows.writerows(_per_query(key, getattr(retrieval, key), texts, *ids[key]))
    _write(out / "metrics.json", [text, "\n"])
    return json.loads(text)


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `write_metrics` wrote, for a comparison.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: its files are of different evaluations, or of none.
    """
    for name in ("metrics.json", "per_query.csv"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder}: no {name} here; name a folder of edje eval --out")
    queries: dict[str, list[tuple[str, str]]] = {key: [] for key in DIRECTIONS}
    ranks: dict[str, list[int]] = {key: [] for key in DIRECTIONS}
    try:
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        with (folder / "per_query.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                queries[row["direction"]].append((row["query_id"], row["query_text"]))
                ranks[row["direction"]].append(int(row["reranked_rank"]))
        stated = {key: metrics[key]["reranked"] for key in DIRECTIONS}
    except (KeyError, ValueError) as error:
        raise ValueError(f"{folder}: not what edje eval --out writes ({error!r})") from error
    found = {key: np.array(values, np.int64) for key, values in ranks.items()}
    for key, values in found.items():
        _check_stated(folder, key, stated[key], measure_ranks(values))
    return Evaluation(str(folder), metrics, queries, found)


def _check_stated(
    folder: Path, key: str, stated: dict[str, float], found: dict[str, float]
) -> None:
    """Refuse metrics that are not those of the ranks; measures that only one of the two knows, as
    they were added or removed since, are passed over."""
    if not all(math.isclose(stated[name], found[name]) for name in stated if name in found):
        raise ValueError(
            f"{folder}: per_query.csv gives {found} for {key} and metrics.json "
            f"{stated}: they are of different evaluations; run edje eval again"
        )


def _per_query(
    key: str,
    direction: Direction,
    texts: list[str],
    query_ids: list[str],
    item_ids: list[str],
) -> Iterator[tuple]:
    """Rows of `per_query.csv`.

    The score is that of the right answer that stands highest after reranking; it is empty where no
    candidate is one, as nothing scored it.
    """
    hits = direction.reranked(direction.hits)
    items = direction.reranked(direction.candidates)
    scores = direction.reranked(direction.combined)
    for q in direction.answered.nonzero()[0].tolist():
        score = f"{scores[q, hits[q].argmax()]:.9g}" if hits[q].any() else ""
        yield (
            key,
            query_ids[q],
            texts[q],
            int(direction.base_rank[q]),
            int(direction.reranked_rank[q]),
            score,
            item_ids[direction.candidates[q, 0]],
            item_ids[items[q, 0]],
        )


def _write(path: Path, parts: Iterator[str] | list[str]) -> None:
    """Write a text file, whole or not at all."""
    with atomic_text(path) as file:
        file.writelines(parts)
