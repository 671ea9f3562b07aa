"""Queries of several parts on the built-in scenes: do they find what they ask for?

    python benchmarks/queries.py [--queries 60] [--out benchmarks/results/queries.json]

Indexes the 1,000 scenes of the test set with the shipped model, which saw whole captions and no
phrases, and asks

- for a text without another one, such as "a red circle" without "a blue square": share of the first
  10 that show the first and not the second (precision@10), and of those that show the second, for
  the text alone and with the negative part; pairs are drawn among those for which 10 scenes are
  right and 5 show both;
- for images like one of the index, and like the same image sent as pixels, which has no captions:
  mean share of its things (shape and colour) that the first 10 show;
- for "a red circle" and an image without one: precision@10 of the text and the share of the image's
  things, by the weight of the image.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side import machine

from edje_jax import ImageIndex, Query, Reranker
from edje_jax.data.sources.registry import open_captioned
from edje_jax.index.build import build
from edje_jax.scenes.scene import COLOURS, SHAPES, TEXTURES, Scene
from edje_jax.scenes.shapes import Shapes

SPEC, K, TOP = "shapes:test", 100, 10
COLOURED = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]
TEXTURED = [f"a {texture} {shape}" for texture in TEXTURES[1:] for shape in SHAPES]
KINDS = {
    "colour, not another colour": (COLOURED, COLOURED),
    "colour, not a texture": (COLOURED, TEXTURED),
    "texture, not a colour": (TEXTURED, COLOURED),
}
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=60, help="queries of each kind")
    parser.add_argument("--out", help="JSON file to write")
    options = parser.parse_args()
    reranker, scenes = Reranker.from_pretrained("shapes-demo"), Shapes("test")
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        build(reranker.runtime, reranker.stamp, open_captioned(SPEC), SPEC, index)
        asked = Asked(reranker, ImageIndex.open(index), scenes)
        rows = {
            "negatives": {kind: negatives(asked, kind, options.queries) for kind in KINDS},
            "like": like(asked, options.queries),
            "image and text": image_and_text(asked, options.queries),
        }
    result = {
        "model": "shapes-demo", "data": SPEC, "k": K, "top": TOP, "queries": options.queries,
        "machine": machine(), **rows,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.out:
        Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


class Asked:
    """Index of scenes that is asked, and what each scene shows."""

    def __init__(self, reranker: Reranker, index: ImageIndex, images: Shapes):
        self.reranker, self.index, self.images = reranker, index, images
        scenes = [images.scene(i) for i in range(len(images))]
        self.phrases = {
            text: np.array([shows(scene, text) for scene in scenes])
            for text in (*COLOURED, *TEXTURED)
        }
        self.things = [{(one.shape, one.colour) for one in scene.things} for scene in scenes]

    def top(self, query: str | Query, leave_out: int | None = None) -> np.ndarray:
        """Numbers of the first scenes that a query finds."""
        found = self.reranker.search(self.index, [query], k=K, top_k=TOP + 1)[0]
        numbers = [self.index.store.image_of_id[one["id"]] for one in found]
        return np.array([number for number in numbers if number != leave_out][:TOP])

    def shared(self, image: int, found: np.ndarray) -> float:
        """Mean share of the things of a scene that others show."""
        own = self.things[image]
        return float(np.mean([len(own & self.things[one]) / len(own) for one in found]))


def shows(scene: Scene, phrase: str) -> bool:
    """Whether a thing of a scene is what a phrase of a colour or texture and a shape tells."""
    _, word, shape = phrase.split()
    return any(one.shape == shape and word in (one.colour, one.texture) for one in scene.things)


def negatives(asked: Asked, kind: str, count: int) -> dict[str, Any]:
    """Precision of texts alone and with a negative part."""
    first, second = KINDS[kind]
    pairs = [
        (a, b)
        for a in first
        for b in second
        if a != b
        and (asked.phrases[a] & ~asked.phrases[b]).sum() >= TOP
        and (asked.phrases[a] & asked.phrases[b]).sum() >= TOP // 2
    ]
    drawn = np.random.default_rng(0).permutation(len(pairs))[:count]

    def measure(query: Callable[[str, str], str | Query]) -> dict[str, float]:
        right, wrong = [], []
        for a, b in (pairs[i] for i in drawn):
            found = asked.top(query(a, b))
            right.append((asked.phrases[a] & ~asked.phrases[b])[found].mean())
            wrong.append(asked.phrases[b][found].mean())
        return {"precision": percent(right), "shows the negative": percent(wrong)}

    return {
        "queries": len(drawn),
        "text": measure(lambda a, b: a),
        "with the negative": measure(lambda a, b: Query(a, [b])),
    }


def like(asked: Asked, count: int) -> dict[str, float]:
    """Things that are shared with an image, by its cosine and with its captions."""
    images = np.random.default_rng(1).permutation(len(asked.things))[:count].tolist()
    by_cosine = [
        asked.shared(i, asked.top(Query(image=asked.images.image(i)), leave_out=i)) for i in images
    ]
    with_captions = [
        asked.shared(i, asked.top(Query(like=asked.images.image_id(i)))) for i in images
    ]
    return {"cosine": percent(by_cosine), "cosine and captions": percent(with_captions)}


def image_and_text(asked: Asked, count: int) -> dict[str, dict[str, float]]:
    """Precision of the text and things shared with the image, by the weight of the image."""
    rng, pairs = np.random.default_rng(2), []
    while len(pairs) < count:
        image, text = int(rng.integers(len(asked.things))), str(rng.choice(COLOURED))
        if not asked.phrases[text][image]:
            pairs.append((image, text))
    out = {}
    for weight in WEIGHTS:
        right, shared = [], []
        for image, text in pairs:
            query = Query(text, image=asked.images.image(image), image_weight=weight)
            found = asked.top(query, leave_out=image)
            right.append(asked.phrases[text][found].mean())
            shared.append(asked.shared(image, found))
        out[str(weight)] = {"shows the text": percent(right), "shares things": percent(shared)}
    return out


def percent(shares: list[float]) -> float:
    """Mean in percent."""
    return round(100 * float(np.mean(shares)), 1)


if __name__ == "__main__":
    main()
