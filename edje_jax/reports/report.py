"""Files of an evaluation: tables for programs, a page for people.

Every file is written beside its place under another name and then renamed, so that a file that is
there is whole; `metrics.json` comes last of its kind.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from edje_jax.evaluation import trec
from edje_jax.evaluation.retrieval import DIRECTIONS, Direction, Gallery, Retrieval
from edje_jax.reports import page
from edje_jax.reports.word_maps import WordMaps
from edje_jax.system.files import replacing_text

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
    with replacing_text(out / "per_query.csv") as file:
        rows = csv.writer(file)
        rows.writerow(PER_QUERY)
        for key in DIRECTIONS:
            texts = gallery.captions if key == "t2i" else [""] * len(gallery.image_ids)
            rows.writerows(_per_query(key, getattr(retrieval, key), texts, *ids[key]))
    _write(out / "metrics.json", [text, "\n"])
    return json.loads(text)


def write_report(
    out: str | Path,
    retrieval: Retrieval,
    gallery: Gallery,
    load_picture: Callable[[int], Image.Image],
    *,
    title: str = "Base and reranked",
    facts: Mapping[str, str] | None = None,
    examples: int = 12,
    seed: int = 0,
    metrics: Mapping[str, Any] | None = None,
    word_maps: Callable[[int], WordMaps] | None = None,
) -> Path:
    """Write `report.html`: the numbers, and queries with what stood first before and after.

    One file without scripts or outside assets. `load_picture(i)` gives the gallery's picture i;
    one that cannot be loaded is shown as missing. `facts` stand under the title, in order (model,
    data, time taken). Up to `examples` queries a section; `seed` chooses the random ones. Figures
    are drawn of `metrics`, as metrics.json has them (default: recalls alone); `word_maps(q)` tells
    where the words of caption q look in their picture.

    Raises:
        ValueError: `examples` is negative.
        OSError: the file cannot be written; nothing half-written is left.
    """
    if examples < 0:
        raise ValueError(f"examples = {examples}; give the number of queries to show a section")
    out = Path(out)
    template = resources.files("edje_jax.reports").joinpath("report_template.html")
    content = page.render(
        template.read_text("utf-8"),
        retrieval,
        gallery,
        load_picture,
        title=title,
        facts=facts or {},
        examples=examples,
        seed=seed,
        metrics=metrics or retrieval.metrics(),
        word_maps=word_maps,
    )
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "report.html", [content])
    return out / "report.html"


def _per_query(
    key: str,
    direction: Direction,
    texts: list[str],
    query_ids: list[str],
    item_ids: list[str],
) -> Iterator[tuple]:
    """Rows of `per_query.csv`. The score is that of the right answer that stands highest after
    reranking; it is empty where no candidate is one, as nothing scored it."""
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
    with replacing_text(path) as file:
        file.writelines(parts)
