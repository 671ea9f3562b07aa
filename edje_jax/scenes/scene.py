"""Scenes of two to four objects, drawn at random, and their captions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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

OPENINGS = ("", "", "there is ", "we see ")
JOINTS = (" and ", ", and ", ", while ")


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
    text = _pick(OPENINGS, rng) + clauses[0]
    for clause in clauses[1:]:
        text += _pick(JOINTS, rng) + clause
    return text


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
    chosen = ATTRIBUTES if whole else (_pick(ATTRIBUTES, rng),)
    order = rng.permutation(len(everything))
    for name in chosen:
        slots = free if name == "size" else everything
        moved = [slots[k] for k in order if k < len(slots)]
        columns[name] = _permuted(columns[name], slots, moved)
    things = zip(*(columns[name] for name in ATTRIBUTES), strict=True)
    return Scene(scene.layout, tuple(Thing(*thing) for thing in things))


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    """Draw a text, the one that `rng.choice` would, in a fifth of its time."""
    return texts[int(rng.integers(len(texts)))]


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
