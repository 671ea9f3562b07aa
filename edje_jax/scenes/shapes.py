"""Procedural scenes with captions: a random-access set that needs no files and no download.

A scene is two to four objects (shape, colour, size, texture) in a layout that states relations:
left of, right of, above, below, inside, overlapping. Images come in groups of distractors made
of the *same words*: attributes swapped between objects, relations turned round. A model that only
matches a bag of words finds the group but not the image in it.

Everything is a pure function of (seed, split, index).
"""

from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image

from edje_jax.scenes.drawing import Drawing, render
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
"""Records in each split."""
TRAIN_GROUP = 4
"""Records of the training split that stand together."""
LABEL_SIZES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(TEXTURES) + 1)
"""Number of classes of each column of `Shapes.patch_labels`, background included."""


class Grouped:
    """Base of the built-in sets: their settings, and the groups of a split.

    Groups of the training split have four records, those of the galleries ("val", "test") four to
    eight. A set is a pure function of (seed, split, index).

    Raises:
        ValueError: `split` is none of train, val, test.
    """

    kind: ClassVar[str]
    """Beginning of the set's SPEC."""

    def __init__(self, split: str, image_size: int = 64, seed: int = 0):
        if split not in SPLITS:
            raise ValueError(f"{self.kind}:{split}: no such split; there are {', '.join(SPLITS)}")
        self.split = split
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return SPLITS[self.split]

    def image_id(self, index: int) -> str:
        """A name that is stable over runs."""
        return f"{self.kind}-{self.split}-{index:06d}"

    def stamp(self, index: int) -> str:
        """Settings that an image of this id depends on."""
        return f"{self.image_size}-{self.seed}"

    def group(self, index: int) -> range:
        """Records of a record's group: distractors of each other, and itself.

        Raises:
            IndexError: there is no such record.
        """
        start, _, size = self._group(index)
        return range(start, start + size)

    def _group(self, index: int) -> tuple[int, int, int]:
        """(first index of the group, place in it, its size).

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.kind}:{self.split} has {len(self)} images, asked for {index}")
        if self.split == "train":
            return index - index % TRAIN_GROUP, index % TRAIN_GROUP, TRAIN_GROUP
        number = int(np.searchsorted(self._starts, index, side="right"))
        start, end = self._starts[number - 1 : number + 1].tolist()
        return start, index - start, end - start

    @cached_property
    def _starts(self) -> np.ndarray:
        """Starts of the groups of a gallery, and its length."""
        rng = generator(self.seed, self.split, 4, 0)
        starts = [0]
        while (left := len(self) - starts[-1]) > 8:
            # Leave at least four for the last group.
            starts.append(starts[-1] + int(rng.integers(4, min(8, left - 4) + 1)))
        return np.array([*starts, len(self)])


class Shapes(Grouped):
    """The `shapes:` source.

    The training split comes in blocks of four records: three blocks of four are one group of
    distractors, the fourth is four unrelated scenes, so that a shuffle that keeps blocks together
    gives batches with hard negatives and singles both. The galleries ("val", "test") are groups
    of four to eight.

    Raises:
        ValueError: `split` is none of train, val, test.
    """

    kind = "shapes"

    def captions(self, index: int) -> tuple[str, ...]:
        """Five captions, each of which tells the scene from every other of its group."""
        return _captions(self.seed, self.split, index, *self._group(index))

    def image(self, index: int) -> Image.Image:
        """The image, RGB."""
        return Image.fromarray(self._drawing(index).pixels)

    def patch_labels(self, index: int, grid: int) -> np.ndarray:
        """Labels of the grid x grid patches: int32 [grid * grid, 4], attribute by attribute.

        0 is background; k > 0 is the k-th value of that attribute. An object owns a patch if it
        covers a fifth of it and more of it than any other. "size" 0 is also "fixed by the layout".
        """
        scene = self.scene(index)
        owners = self._drawing(index).owners()
        side = owners.shape[0] // grid
        patches = owners[: side * grid, : side * grid].reshape(grid, side, grid, side)
        cover = np.stack([(patches == i).mean((1, 3)) for i in range(1, len(scene.things) + 1)])
        winner = np.where(cover.max(0) >= 0.2, cover.argmax(0) + 1, 0).reshape(-1)
        codes = np.array([[0] * 4] + [_codes(thing) for thing in scene.things], np.int32)
        return codes[winner]

    def scene(self, index: int) -> Scene:
        """Scene that image `index` shows."""
        start, member, size = self._group(index)
        return _scenes(self.seed, self.split, start, size)[member]

    def _drawing(self, index: int) -> Drawing:
        return _drawn(self.seed, self.split, index, self.scene(index), self.image_size)


def generator(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    """Random numbers of a record, or of a group by its first; streams are independent."""
    return np.random.default_rng([seed, list(SPLITS).index(split), stream, index])


@lru_cache(maxsize=1 << 15)
def _captions(
    seed: int, split: str, index: int, start: int, member: int, size: int
) -> tuple[str, ...]:
    """Cached, as a training asks for them in every epoch and an index twice."""
    scene, rng = _scenes(seed, split, start, size)[member], generator(seed, split, 1, index)
    return tuple(describe(scene, rng) for _ in range(5))


@lru_cache(maxsize=256)
def _drawn(seed: int, split: str, index: int, scene: Scene, side: int) -> Drawing:
    """Cached, as a batch asks for the images first and for what their patches hold later."""
    return render(scene, side, generator(seed, split, 2, index))


@lru_cache(maxsize=256)
def _scenes(seed: int, split: str, start: int, size: int) -> tuple[Scene, ...]:
    """The scenes of one group; cached, as its members are often drawn together."""
    rng = generator(seed, split, 0, start)
    if split == "train" and rng.random() < 0.25:
        return tuple(random_group(rng, 1)[0] for _ in range(size))
    return tuple(random_group(rng, size))


def _codes(thing: Thing) -> list[int]:
    return [
        SHAPES.index(thing.shape) + 1,
        list(COLOURS).index(thing.colour) + 1,
        list(SIZES).index(thing.size) + 1 if thing.size else 0,
        TEXTURES.index(thing.texture) + 1,
    ]
