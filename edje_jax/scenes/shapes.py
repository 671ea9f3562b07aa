"""Procedural scenes with captions: a random-access set that needs no files and no download.

A scene is two to four objects (shape, colour, size, texture) in a layout that states relations:
left of, right of, above, below, inside, overlapping. Images come in groups of distractors made
of the *same words*: attributes swapped between objects, relations turned round. A model that only
matches a bag of words finds the group but not the image in it.

Everything is a pure function of (seed, split, index).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 190),
    "black": (35, 35, 40),
}
SIZES = {"small": 0.09, "medium": 0.125, "large": 0.165}
"""Radius as a share of the image's side. "medium" goes unspoken."""
TEXTURES = ("plain", "striped", "dotted")
"""Fillings of an object. "plain" goes unspoken."""
ATTRIBUTES = ("shape", "colour", "size", "texture")
INVERSE = {
    "left of": "right of",
    "above": "below",
    "inside": "around",
    "overlapping": "overlapping",
}
SPLITS = {"train": 100_000, "val": 1_000, "test": 1_000}
"""Images in each split."""
TRAIN_GROUP = 4
"""Records of the training split that stand together: see `Shapes.scene`."""

LABEL_SIZES = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, len(TEXTURES) + 1)
"""Number of classes of each column of `Shapes.patch_labels`, background included."""

_SUPERSAMPLE = 4


@dataclass(frozen=True)
class Thing:
    """Object of a scene. `size` is empty where the layout fixes it (inside, overlapping)."""

    shape: str
    colour: str
    size: str
    texture: str


@dataclass(frozen=True)
class Layout:
    """Slots as (x, y, fixed radius or 0) in shares of the side, and the relations between them."""

    slots: tuple[tuple[float, float, float], ...]
    facts: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class Scene:
    """Scene with one object per slot of a layout."""

    layout: Layout
    things: tuple[Thing, ...]


LAYOUTS = (
    Layout(((0.26, 0.5, 0), (0.74, 0.5, 0)), ((0, "left of", 1),)),
    Layout(((0.5, 0.26, 0), (0.5, 0.74, 0)), ((0, "above", 1),)),
    Layout(((0.5, 0.5, 0.36), (0.5, 0.5, 0.14)), ((1, "inside", 0),)),
    Layout(((0.38, 0.42, 0.2), (0.62, 0.58, 0.2)), ((0, "overlapping", 1),)),
    Layout(((0.18, 0.5, 0), (0.5, 0.5, 0), (0.82, 0.5, 0)), ((0, "left of", 1), (1, "left of", 2))),
    Layout(((0.5, 0.18, 0), (0.5, 0.5, 0), (0.5, 0.82, 0)), ((0, "above", 1), (1, "above", 2))),
    Layout(
        ((0.27, 0.27, 0), (0.73, 0.27, 0), (0.27, 0.73, 0)), ((0, "left of", 1), (0, "above", 2))
    ),
    Layout(
        ((0.31, 0.5, 0.28), (0.31, 0.5, 0.11), (0.8, 0.5, 0)), ((1, "inside", 0), (0, "left of", 2))
    ),
    Layout(
        ((0.5, 0.31, 0.28), (0.5, 0.31, 0.11), (0.5, 0.8, 0)), ((1, "inside", 0), (0, "above", 2))
    ),
    Layout(
        ((0.25, 0.38, 0.17), (0.36, 0.62, 0.17), (0.8, 0.5, 0)),
        ((0, "overlapping", 1), (0, "left of", 2), (1, "left of", 2)),
    ),
    Layout(
        ((0.38, 0.25, 0.17), (0.62, 0.36, 0.17), (0.5, 0.8, 0)),
        ((0, "overlapping", 1), (0, "above", 2), (1, "above", 2)),
    ),
    Layout(
        ((0.27, 0.27, 0), (0.73, 0.27, 0), (0.27, 0.73, 0), (0.73, 0.73, 0)),
        ((0, "left of", 1), (2, "left of", 3), (0, "above", 2), (1, "above", 3)),
    ),
)


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
        """All that an image of this id depends on."""
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


def random_group(rng: np.random.Generator, size: int) -> list[Scene]:
    """`size` different scenes that share a layout and every word."""
    while True:
        base = _random_scene(rng)
        scenes = {_identity(base): base}
        for _ in range(8 * size):
            if len(scenes) >= size:
                return list(scenes.values())
            variant = _shuffle_attributes(base, rng)
            scenes.setdefault(_identity(variant), variant)


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """English caption: every object with its spoken attributes, and how they stand."""
    facts = _spanning_facts(scene, rng)
    mentioned: set[int] = set()

    def mention(i: int) -> str:
        thing = scene.things[i]
        if i in mentioned:
            return f"the {thing.shape}"
        mentioned.add(i)
        return _noun_phrase(thing, rng)

    clauses = []
    for a, relation, b in facts:
        # Begin with what has been named already, so that the caption reads on.
        if (b in mentioned and a not in mentioned) or (not mentioned and rng.random() < 0.5):
            a, relation, b = b, INVERSE[relation], a
        subject, place = mention(a), f"{relation} {mention(b)}"
        clauses.append(f"{subject} {place}" if not clauses else f"{subject} is {place}")
    opening = rng.choice(["", "", "there is ", "we see "])
    text = opening + clauses[0]
    for clause in clauses[1:]:
        text += str(rng.choice([" and ", ", and ", ", while "])) + clause
    return text


def render(scene: Scene, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene: uint8 [side, side, 3], and which object each fine pixel shows.

    The second is uint8 [4 * side, 4 * side], 0 for the background, i for the i-th object.
    """
    fine = side * _SUPERSAMPLE
    shade = int(rng.integers(205, 250))
    canvas = Image.new("RGB", (fine, fine), (shade, shade, shade))
    owner = Image.new("L", (fine, fine))
    shift = rng.uniform(-0.025, 0.025, 2)
    for i, (thing, (x, y, fixed)) in enumerate(
        zip(scene.things, scene.layout.slots, strict=True), start=1
    ):
        radius = (fixed or SIZES[thing.size]) * rng.uniform(0.95, 1.05)
        centre = np.array([x, y]) + shift + rng.uniform(-0.01, 0.01, 2)
        outline, box = _outline(thing.shape, centre * fine, radius * fine)
        ink = COLOURS[thing.colour]
        canvas.paste(ink, box, outline)
        if thing.texture != "plain":
            light = tuple(c + (255 - c) * 2 // 3 for c in ink)
            lit = _pattern(thing.texture, fine).crop(box)
            canvas.paste(light, box, ImageChops.multiply(outline, lit))
        owner.paste(i, box, outline)
    image = np.asarray(canvas.reduce(_SUPERSAMPLE), np.int16)
    noise = rng.integers(-6, 7, image.shape, np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8), np.asarray(owner)


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


def _random_scene(rng: np.random.Generator) -> Scene:
    layout = LAYOUTS[rng.integers(len(LAYOUTS))]
    n = len(layout.slots)
    shapes = rng.permutation(SHAPES)[:n]
    colours = rng.permutation(list(COLOURS))[:n]
    textures, sizes = ["plain"] * n, ["medium"] * n
    # One more attribute varies, unless there are objects enough; captions stay within 27 words.
    if n < 4:
        if all(slot[2] for slot in layout.slots) or rng.random() < 0.5:
            textures = rng.permutation(TEXTURES)[:n]
        else:
            sizes = rng.permutation(list(SIZES))[:n]
    things = tuple(
        Thing(str(shape), str(colour), "" if slot[2] else str(size), str(texture))
        for shape, colour, size, texture, slot in zip(
            shapes, colours, sizes, textures, layout.slots, strict=True
        )
    )
    return Scene(layout, things)


def _shuffle_attributes(scene: Scene, rng: np.random.Generator) -> Scene:
    """Hand one attribute, or whole objects, round between the slots."""
    columns = {name: [getattr(thing, name) for thing in scene.things] for name in ATTRIBUTES}
    free = [i for i, slot in enumerate(scene.layout.slots) if not slot[2]]
    everything = list(range(len(scene.things)))
    whole = rng.random() < 0.25 and len(free) in (0, len(everything))
    chosen = ATTRIBUTES if whole else (str(rng.choice(ATTRIBUTES)),)
    order = rng.permutation(len(everything))
    for name in chosen:
        slots = free if name == "size" else everything
        moved = [slots[k] for k in order if k < len(slots)]
        columns[name] = _permuted(columns[name], slots, moved)
    things = zip(*(columns[name] for name in ATTRIBUTES), strict=True)
    return Scene(scene.layout, tuple(Thing(*thing) for thing in things))


def _permuted(values: Sequence[str], slots: Sequence[int], moved: Sequence[int]) -> list[str]:
    out = list(values)
    for target, source in zip(slots, moved, strict=True):
        out[target] = values[source]
    return out


def _identity(scene: Scene) -> object:
    """Equal for scenes that no caption can tell apart."""
    things = list(scene.things)
    for a, relation, b in scene.layout.facts:
        if relation == "overlapping":
            things[a], things[b] = sorted((things[a], things[b]), key=repr)
    return tuple(things)


def _spanning_facts(scene: Scene, rng: np.random.Generator) -> list[tuple[int, str, int]]:
    """Relations in an order that starts anywhere, stays connected and names every object once."""
    facts = [scene.layout.facts[i] for i in rng.permutation(len(scene.layout.facts))]
    chosen, seen = [facts[0]], {facts[0][0], facts[0][2]}
    while len(seen) < len(scene.things):
        fact = next(f for f in facts if (f[0] in seen) != (f[2] in seen))
        chosen.append(fact)
        seen |= {fact[0], fact[2]}
    return chosen


def _noun_phrase(thing: Thing, rng: np.random.Generator) -> str:
    size = thing.size if thing.size not in ("", "medium") else ""
    texture = "" if thing.texture == "plain" else thing.texture
    middle = [texture, thing.colour] if rng.random() < 0.5 else [thing.colour, texture]
    return " ".join(word for word in ("a", size, *middle, thing.shape) if word)


def _codes(thing: Thing) -> list[int]:
    return [
        SHAPES.index(thing.shape) + 1,
        list(COLOURS).index(thing.colour) + 1,
        list(SIZES).index(thing.size) + 1 if thing.size else 0,
        TEXTURES.index(thing.texture) + 1,
    ]


def _outline(
    shape: str, centre: np.ndarray, radius: float
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Mask, 255 inside a shape, and the box it covers; only the box is drawn, for speed."""
    left, top = np.floor(centre - 1.15 * radius).astype(int)
    side = int(2.3 * radius) + 3
    (x, y), r = centre - (left, top), radius
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    else:
        draw.polygon(((x, y) + r * _polygon(shape)).ravel().tolist(), fill=255)
    return mask, (int(left), int(top), int(left) + side, int(top) + side)


@cache
def _polygon(shape: str) -> np.ndarray:
    """Corners [n, 2] on or near the unit circle, y down."""
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)])
    if shape == "star":
        turns = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2, 0.45, 1.1)
        return np.stack([reach * np.sin(turns), -reach * np.cos(turns)], axis=1)
    w = 0.36
    arm, turn = np.array([(-w, -1.0), (w, -1.0), (w, -w)]), np.array([[0, -1], [1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(turn, k).T for k in range(4)])


@cache
def _pattern(texture: str, fine: int) -> Image.Image:
    """Mask, 255 where a texture lightens its object."""
    rows, columns = np.mgrid[:fine, :fine]
    if texture == "striped":
        lit = (rows + columns) % (fine / 11) < fine / 26
    else:
        period = fine / 14
        dr, dc = rows % period - period / 2, columns % period - period / 2
        lit = dr**2 + dc**2 < (period * 0.31) ** 2
    return Image.fromarray((lit * 255).astype(np.uint8))
