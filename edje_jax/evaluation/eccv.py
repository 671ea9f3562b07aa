"""COCO's test set judged by more right answers than its own captions: CxC and ECCV Caption.

A caption describes more of COCO's images than the one it was written for. CrissCrossed Captions
(arXiv 2004.15020) and ECCV Caption (arXiv 2204.03359) had people find the others; the package
`eccv_caption` holds both and computes recalls, R-precision and mAP@R, of which the last is what its
authors recommend. It names images and captions by COCO's own numbers.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from edje_jax.evaluation.retrieval import Direction, Retrieval, base_ranking

TARGETS = ("coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r")
"""Groups of metrics, by the names of `eccv_caption`."""


class CocoIds(NamedTuple):
    """COCO's numbers of a gallery's images and captions."""

    images: Int[np.ndarray, " n"]
    captions: Int[np.ndarray, " t"]


def check_whole_test_set(ids: CocoIds) -> None:
    """Refuse a gallery that lacks some of COCO's 5,000 test images or of their captions.

    Raises:
        ImportError: eccv_caption is not installed.
        ValueError: some are missing.
    """
    needed = _judge().coco_gts
    for what, numbers, key in (("images", ids.images, "i2t"), ("captions", ids.captions, "t2i")):
        if missing := needed[key].keys() - set(numbers.tolist()):
            raise ValueError(
                f"{len(missing):,} of COCO's {len(needed[key]):,} test {what} are not in this "
                "gallery; ECCV Caption is measured on all of them"
            )


def eccv_metrics(
    retrieval: Retrieval,
    image_embeddings: Float[np.ndarray, "n e"],
    text_embeddings: Float[np.ndarray, "t e"],
    caption_image: Int[np.ndarray, " t"],
    ids: CocoIds,
) -> dict[str, dict[str, dict[str, float]]]:
    """{"base": {"eccv_map_at_r": {"i2t", "t2i"}, ...}, "reranked": {...}}, in percent.

    Past the rerank depth the first stage's order stands, as in R@k. Both lists are as deep as the
    query with the most right answers needs. `caption_image` numbers the image of each caption.

    Raises:
        ImportError: eccv_caption is not installed.
    """
    judge = _judge()
    gts = [both[key] for both in (judge.eccv_gts, judge.cxc_gts) for key in ("i2t", "t2i")]
    depth = max(10, *(len(items) for one in gts for items in one.values()))
    owner, own = caption_image, np.arange(len(ids.images), dtype=np.int32)
    t2i = base_ranking(text_embeddings, image_embeddings, owner, own, depth).candidates
    i2t = base_ranking(image_embeddings, text_embeddings, own, owner, depth).candidates
    out = {}
    for stage in ("base", "reranked"):
        found = judge.compute_all_metrics(
            i2t_retrieved_items=_lists(retrieval.i2t, i2t, stage, ids.images, ids.captions),
            t2i_retrieved_items=_lists(retrieval.t2i, t2i, stage, ids.captions, ids.images),
            target_metrics=list(TARGETS),
        )
        out[stage] = {
            name: {key: 100 * float(value) for key, value in both.items()}
            for name, both in found.items()
        }
    return out


def _lists(
    direction: Direction,
    base: Int[np.ndarray, "q d"],
    stage: str,
    query_ids: Int[np.ndarray, " q"],
    item_ids: Int[np.ndarray, " g"],
) -> dict[int, list[int]]:
    """{query: items, best first}, by COCO's numbers."""
    ranked = base.copy()
    if stage == "reranked":
        k = min(direction.candidates.shape[1], base.shape[1])
        ranked[:, :k] = direction.reranked(direction.candidates)[:, :k]
    return dict(zip(query_ids.tolist(), item_ids[ranked].tolist(), strict=True))


@cache
def _judge():
    from eccv_caption import Metrics

    return Metrics()
