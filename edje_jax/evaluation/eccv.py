"""COCO's test set with the right answers that its own captions miss: CxC and ECCV Caption.

A caption describes more of COCO's pictures than the one it was written for. CrissCrossed Captions
(arXiv 2004.15020) and ECCV Caption (arXiv 2204.03359) had people find the others; the package
`eccv_caption` holds both and computes recalls, R-precision and mAP@R, of which the last is what its
authors recommend. It knows COCO's own numbers of pictures and captions.
"""

import json
import re
from collections import defaultdict
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float, Int

from edje_jax.evaluation.retrieval import Direction, Gallery, Retrieval, first_stage

MEASURES = ("coco_5k_recalls", "cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r")


def coco_ids(
    gallery: Gallery, annotations: Path
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " t"]]:
    """COCO's numbers of the gallery's pictures and captions.

    A picture's stand at the end of its name (COCO_val2014_000000391895.jpg). Captions are found by
    picture and text in COCO's captions_val2014.json.

    Raises:
        ImportError: eccv_caption is not installed.
        FileNotFoundError, ValueError: the file is missing or no such file, a picture's name ends in
            no number, a caption is not in the file, or the gallery lacks some of COCO's 5,000 test
            pictures.
    """
    known: dict[tuple[int, str], list[int]] = defaultdict(list)
    try:
        for one in json.loads(annotations.read_text("utf-8"))["annotations"]:
            known[int(one["image_id"]), _plain(one["caption"])].append(int(one["id"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{annotations}: not COCO's captions_val2014.json ({error!r})") from error
    pictures = np.array([_picture_id(name) for name in gallery.image_ids])
    captions = []
    for text, owner in zip(gallery.captions, pictures[gallery.caption_image], strict=True):
        found = known[int(owner), _plain(text)]
        if not found:
            raise ValueError(f"{annotations}: picture {owner} has no caption {text!r} there")
        captions.append(found.pop(0))
    numbers = {"pictures": pictures, "captions": np.array(captions)}
    needed = _judge().coco_gts
    for what, key in (("pictures", "i2t"), ("captions", "t2i")):
        if missing := needed[key].keys() - set(numbers[what].tolist()):
            raise ValueError(
                f"{len(missing):,} of COCO's {len(needed[key]):,} test {what} are not in this "
                "gallery; ECCV Caption is measured on all of them"
            )
    return numbers["pictures"], numbers["captions"]


def eccv_metrics(
    retrieval: Retrieval,
    image_embeddings: Float[np.ndarray, "n e"],
    text_embeddings: Float[np.ndarray, "t e"],
    gallery: Gallery,
    annotations: Path,
) -> dict[str, dict[str, dict[str, float]]]:
    """{"base": {"eccv_map_at_r": {"i2t", "t2i"}, ...}, "reranked": {...}}, in percent.

    Past the rerank depth the first stage's order stands, as in R@k. Both lists are as deep as the
    query with the most right answers needs.

    Raises:
        ImportError, FileNotFoundError, ValueError: see `coco_ids`.
    """
    pictures, captions = coco_ids(gallery, annotations)
    judge = _judge()
    gts = [both[key] for both in (judge.eccv_gts, judge.cxc_gts) for key in ("i2t", "t2i")]
    depth = max(10, *(len(items) for one in gts for items in one.values()))
    owner, own = gallery.caption_image, np.arange(len(pictures), dtype=np.int32)
    t2i = first_stage(text_embeddings, image_embeddings, owner, own, depth).candidates
    i2t = first_stage(image_embeddings, text_embeddings, own, owner, depth).candidates
    out = {}
    for stage in ("base", "reranked"):
        found = judge.compute_all_metrics(
            i2t_retrieved_items=_lists(retrieval.i2t, i2t, stage, pictures, captions),
            t2i_retrieved_items=_lists(retrieval.t2i, t2i, stage, captions, pictures),
            target_metrics=list(MEASURES),
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


def _picture_id(name: str) -> int:
    digits = re.search(r"(\d+)$", PurePosixPath(name).stem)
    if not digits:
        raise ValueError(f"picture {name!r}: no COCO number at the end of its name")
    return int(digits[1])


def _plain(text: str) -> str:
    return " ".join(text.split())
