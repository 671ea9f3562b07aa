"""Pixels of a scene."""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageDraw

from edje_jax.scenes.scene import COLOURS, SIZES, Scene

_SUPERSAMPLE = 4


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels of a canvas, which is four times as large as its image."""


class Drawing(NamedTuple):
    """Drawn scene."""

    pixels: UInt8[np.ndarray, "s s 3"]
    masks: tuple[tuple[Image.Image, Box], ...]
    """Binary mask of each object, and the box of the canvas that the mask fills. Later
    objects cover earlier ones."""

    def owners(self) -> UInt8[np.ndarray, "f f"]:
        """Object that each pixel of the larger canvas shows: 0 for the background, i for the i-th
        object."""
        side = len(self.pixels) * _SUPERSAMPLE
        owners = Image.new("L", (side, side))
        for i, (mask, box) in enumerate(self.masks, start=1):
            owners.paste(i, box, mask)
        return np.asarray(owners)


def render(scene: Scene, side: int, rng: np.random.Generator) -> Drawing:
    """Draw a scene as an image of side x side."""
    canvas = new_canvas(side, int(rng.integers(205, 250)))
    shift = rng.uniform(-0.025, 0.025, 2)
    masks = []
    for thing, (x, y, fixed) in zip(scene.things, scene.layout.slots, strict=True):
        radius = (fixed or SIZES[thing.size]) * rng.uniform(0.95, 1.05)
        centre = np.array([x, y]) + shift + rng.uniform(-0.01, 0.01, 2)
        outline, box = paint(canvas, thing.shape, thing.colour, centre, radius)
        masks.append((outline, box))
        if thing.texture != "plain":
            light = tuple(c + (255 - c) * 2 // 3 for c in COLOURS[thing.colour])
            lit = _pattern(thing.texture, canvas.width).crop(box)
            canvas.paste(light, box, ImageChops.logical_and(outline, lit))
    return Drawing(noisy(canvas, rng), tuple(masks))


def new_canvas(side: int, shade: int) -> Image.Image:
    """Grey canvas for an image of side x side, larger, so that edges become smooth."""
    fine = side * _SUPERSAMPLE
    return Image.new("RGB", (fine, fine), (shade, shade, shade))


def paint(
    canvas: Image.Image, shape: str, colour: str, centre: np.ndarray, radius: float
) -> tuple[Image.Image, Box]:
    """Paint a shape onto a canvas; centre (x, y) and radius are shares of its side.

    Returns:
        (binary mask; the box of the canvas that the mask covers).
    """
    outline, box = _outline(shape, centre * canvas.width, radius * canvas.width)
    canvas.paste(COLOURS[colour], box, outline)
    return outline, box


def noisy(canvas: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Image of a canvas with a little noise: uint8 [side, side, 3]."""
    image = np.asarray(canvas.reduce(_SUPERSAMPLE), np.int16)
    noise = rng.integers(-6, 7, image.shape, np.int16)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _outline(shape: str, centre: np.ndarray, radius: float) -> tuple[Image.Image, Box]:
    """Binary mask of a shape, and the box it covers; only the box is drawn, for speed."""
    left, top = np.floor(centre - 1.15 * radius).astype(int)
    side = int(2.3 * radius) + 3
    (x, y), r = centre - (left, top), radius
    mask = Image.new("1", (side, side))
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
    """Binary mask of where a texture lightens its object."""
    rows, columns = np.mgrid[:fine, :fine]
    if texture == "striped":
        lit = (rows + columns) % (fine / 11) < fine / 26
    else:
        period = fine / 14
        dr, dc = rows % period - period / 2, columns % period - period / 2
        lit = dr**2 + dc**2 < (period * 0.31) ** 2
    return Image.fromarray(lit)
