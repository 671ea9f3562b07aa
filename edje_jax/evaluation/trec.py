"""Runs and qrels as lines of TREC's text formats; `reports.evaluation_files` writes them.

Readers such as trec_eval ignore the rank column and sort by score themselves, breaking ties in an
order of their own. So the scores of a query fall strictly, in float32 too: where two are equal, the
later is written as the next smaller float. The measure that equals our R@k is `Success@k` (TREC's
own `R@k` divides by the number of right answers, of which an image has several). Runs end at the
rerank depth, so this holds up to there; our own recalls know the first stage past it.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from edje_jax.evaluation.retrieval import Direction, Gallery

_UNSAFE = re.compile(r"[\s\x00-\x1f\x7f%]")


def safe_id(name: str) -> str:
    """Id without white space: percent-encoded as in a URL, and `%` too, so that
    `urllib.parse.unquote` gives it back and different ids stay different."""
    return _UNSAFE.sub(lambda match: "".join(f"%{b:02X}" for b in match[0].encode()), name)


def strictly_decreasing(scores: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Sorted scores in float32, each lowered by as little as makes its row fall strictly."""
    scores = np.array(scores, np.float32)
    for j in range(1, scores.shape[1]):
        below = np.nextafter(scores[:, j - 1], np.float32(-np.inf))
        scores[:, j] = np.minimum(scores[:, j], below)
    return scores


def run_lines(
    query_ids: Sequence[str],
    item_ids: Sequence[str],
    items: Int[np.ndarray, "q k"],
    scores: Float[np.ndarray, "q k"],
    tag: str,
    counted: Bool[np.ndarray, " q"],
) -> Iterator[str]:
    """Lines `query Q0 item rank score tag`, best first, of the queries with `counted` True."""
    item_names = [safe_id(name) for name in item_ids]
    written = strictly_decreasing(scores)
    for q in np.flatnonzero(counted).tolist():
        query = safe_id(query_ids[q])
        for rank, (item, score) in enumerate(
            zip(items[q].tolist(), written[q].tolist(), strict=True), start=1
        ):
            # Nine digits bring every float32 back exactly.
            yield f"{query} Q0 {item_names[item]} {rank} {score:.9g} {tag}\n"


def base_run(
    direction: Direction, query_ids: Sequence[str], item_ids: Sequence[str]
) -> Iterator[str]:
    """Lines of the first stage's lists, scored by cosine."""
    return run_lines(
        query_ids,
        item_ids,
        direction.candidates,
        direction.similarities,
        "base",
        direction.answered,
    )


def reranked_run(
    direction: Direction, query_ids: Sequence[str], item_ids: Sequence[str]
) -> Iterator[str]:
    """Lines of the reranked lists, scored by the values that sorted them."""
    return run_lines(
        query_ids,
        item_ids,
        direction.reranked(direction.candidates),
        direction.reranked(direction.combined),
        "reranked",
        direction.answered,
    )


def qrels_lines(gallery: Gallery, direction: str) -> Iterator[str]:
    """Lines `query 0 item 1`, one for every right answer; `direction` is "t2i" or "i2t"."""
    for text, i in zip(gallery.text_ids, gallery.caption_image.tolist(), strict=True):
        names = (safe_id(text), safe_id(gallery.image_ids[i]))
        query, item = names if direction == "t2i" else names[::-1]
        yield f"{query} 0 {item} 1\n"
