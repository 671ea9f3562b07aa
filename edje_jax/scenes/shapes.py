"""Procedural scenes with captions: a random-access set that needs no files and no download.

A scene is two to four objects (shape, colour, size, texture) in a layout that states relations:
left of, right of, above, below, inside, overlapping. Images come in groups of distractors made
of the *same words*: attributes swapped between objects, relations turned round. A model that only
matches a bag of words finds the group but not the image in it.

Everything is a pure function of (seed, split, index).
"""

from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from edje_jax.scenes.drawing import render
from edje_jax.scenes.scene import (
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    describe,
    random_group,
)

SPLITS = {"train": 100_000, "val": 1_000, "test": 1_000}
"""Images in each split."""
TRAIN_GROUP = 4
"""Records of the training split that stand together: see `Shapes.scene`."""
LABEL_SIZES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(TEXTURES) + 1)
"""Number of classes of each column of `Shapes.patch_labels`, background included."""


class Shapes:
    """The `shapes:` source.

    The training split comes in blocks of four records: three blocks of four are one group of
    distractors, the fourth is four unrelated scenes, so that a shuffle that keeps blocks together
    gives batches with hard negatives and singles both. The galleries ("val", "test") are groups
    of four to eight.

    Raises:
        ValueError: `split` is none of train, val, test.
    """

    def __init__(self, split: str, image_size: int = 64, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"shapes:{split}: no such split; there are {', '.join(SPLITS)}")
        self.split = split
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return SPLITS[self.split]

    def image_id(self, index: int) -> str:
        """A name that is stable over runs."""
        return f"shapes-{self.split}-{index:06d}"

    def captions(self, index: int) -> tuple[str, ...]:
        """Five captions, each of which tells the scene from every other of its group."""
        scene = self.scene(index)
        rng = self._rng(index, stream=1)
        return tuple(describe(scene, rng) for _ in range(5))

    def stamp(self, index: int) -> str:
        """Settings that an image of this id depends on."""
        return f"{self.image_size}-{self.seed}"

    def image(self, index: int) -> Image.Image:
        """The image, RGB."""
        return Image.fromarray(self._render(index)[0])

    def patch_labels(self, index: int, grid: int) -> np.ndarray:
        """Labels of the grid x grid patches: int32 [grid * grid, 4], attribute by attribute.

        0 is background; k > 0 is the k-th value of that attribute. An object owns a patch if it
        covers a fifth of it and more of it than any other. "size" 0 is also "fixed by the layout".
        """
        scene = self.scene(index)
        _, owner = self._render(index)
        side = owner.shape[0] // grid
        patches = owner[: side * grid, : side * grid].reshape(grid, side, grid, side)
        cover = np.stack([(patches == i).mean((1, 3)) for i in range(1, len(scene.things) + 1)])
        winner = np.where(cover.max(0) >= 0.2, cover.argmax(0) + 1, 0).reshape(-1)
        codes = np.array([[0] * 4] + [_codes(thing) for thing in scene.things], np.int32)
        return codes[winner]

    def scene(self, index: int) -> Scene:
        """Scene that image `index` shows."""
        if not 0 <= index < len(self):
            raise IndexError(f"shapes:{self.split} has {len(self)} images, asked for {index}")
        start, member, size = self._group(index)
        return _scenes(self.seed, self.split, start, size)[member]

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return _rendered(self.seed, self.split, index, self.scene(index), self.image_size)

    def _group(self, index: int) -> tuple[int, int, int]:
        """(first index of the group, place in it, its size)."""
        if self.split == "train":
            return index - index % TRAIN_GROUP, index % TRAIN_GROUP, TRAIN_GROUP
        start = int(self._starts[np.searchsorted(self._starts, index, side="right") - 1])
        end = self._starts[np.searchsorted(self._starts, index, side="right")]
        return start, index - start, int(end) - start

    @cached_property
    def _starts(self) -> np.ndarray:
        """Starts of the groups of a gallery, and its length; a group has 4 to 8 images."""
        rng = _generator(self.seed, self.split, 4, 0)
        starts = [0]
        while (left := len(self) - starts[-1]) > 8:
            # Leave at least four for the last group.
            starts.append(starts[-1] + int(rng.integers(4, min(8, left - 4) + 1)))
        return np.array([*starts, len(self)])

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return _generator(self.seed, self.split, stream, index)


@lru_cache(maxsize=256)
def _rendered(
    seed: int, split: str, index: int, scene: Scene, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cached, as a batch asks for the images first and for what their patches hold later."""
    return render(scene, side, _generator(seed, split, 2, index))


@lru_cache(maxsize=256)
def _scenes(seed: int, split: str, start: int, size: int) -> tuple[Scene, ...]:
    """The scenes of one group; cached, as its members are often drawn together."""
    rng = _generator(seed, split, 0, start)
    if split == "train" and rng.random() < 0.25:
        return tuple(random_group(rng, 1)[0] for _ in range(size))
    return tuple(random_group(rng, size))


def _generator(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, list(SPLITS).index(split), stream, index])


def _codes(thing: Thing) -> list[int]:
    return [
        SHAPES.index(thing.shape) + 1,
        list(COLOURS).index(thing.colour) + 1,
        list(SIZES).index(thing.size) + 1 if thing.size else 0,
        TEXTURES.index(thing.texture) + 1,
    ]
