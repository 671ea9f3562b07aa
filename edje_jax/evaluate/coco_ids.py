"""COCO's numbers of a gallery's images and captions, found in COCO's own annotations."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from edje_jax.data.labels import coco_number
from edje_jax.evaluation.eccv import CocoIds, check_whole_test_set
from edje_jax.evaluation.retrieval import Gallery


def coco_ids(gallery: Gallery, annotations: Path) -> CocoIds:
    """Look up the images and captions of a gallery.

    An image's number stands at the end of its name (COCO_val2014_000000391895.jpg). Captions are
    found by image and text in COCO's captions_val2014.json.

    Raises:
        ImportError: eccv_caption is not installed.
        FileNotFoundError, ValueError: the file is missing or no such file, an image's name ends in
            no number, a caption is not in the file, or the gallery lacks some of COCO's 5,000 test
            images.
    """
    known: dict[tuple[int, str], list[int]] = defaultdict(list)
    try:
        for one in json.loads(annotations.read_text("utf-8"))["annotations"]:
            known[int(one["image_id"]), _one_line(one["caption"])].append(int(one["id"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{annotations}: not COCO's captions_val2014.json ({error!r})") from error
    images = np.array([_image_id(name) for name in gallery.image_ids])
    captions = []
    for text, owner in zip(gallery.captions, images[gallery.caption_image], strict=True):
        found = known[int(owner), _one_line(text)]
        if not found:
            raise ValueError(f"{annotations}: image {owner} has no caption {text!r} there")
        captions.append(found.pop(0))
    ids = CocoIds(images, np.array(captions))
    check_whole_test_set(ids)
    return ids


def _image_id(name: str) -> int:
    number = coco_number(name)
    if number is None:
        raise ValueError(f"image {name!r}: no COCO number at the end of its name")
    return number


def _one_line(text: str) -> str:
    return " ".join(text.split())
