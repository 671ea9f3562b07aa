"""Procedural scenes in motion with captions: the built-in set of videos, without files.

A clip shows two events, one after the other, each in a shot of its own: something moves, passes
behind something else, appears, disappears or changes its colour. Every event has a counterpart that
shows the same frames backwards, and the two may come in either order. A pair of events so makes
eight clips of *the same frames*, of which a group of distractors has four to eight: whatever is
averaged over the frames of a clip cannot tell them apart, while each caption is true of one alone.

Everything is a pure function of (seed, split, index).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.scenes.drawing import new_canvas, noisy, paint
from edje_jax.scenes.scene import COLOURS, SHAPES
from edje_jax.scenes.shapes import Grouped, generator
from edje_jax.types import FRAME_TIME, FrameTime

SECONDS = 4.0
"""Length that a clip counts as, where frames are read by their rate."""
ORDERS = tuple((a, b, c) for a, b, c in product((False, True), repeat=3))
"""Whether two events change places, and whether each of them runs backwards."""
KINDS = ("across", "along", "behind", "presence", "colour")
"""Kinds of events: along the rows, along the columns, behind another object, and so on."""
_FIELD = (0.18, 0.82)
"""Coordinates between which objects move, in shares of the side."""
_RADIUS, _COVER = 0.13, 0.2
"""Radius of an object, and of one that others pass behind."""


@dataclass(frozen=True)
class Event:
    """Change of an object, which may run backwards."""

    kind: str
    """Name in `KINDS`."""
    shape: str
    colour: str
    other: tuple[str, ...] = ()
    """Shape and colour that the object passes behind, or the colour that it takes on."""

    def told(self, backwards: bool) -> str:
        """Clause that says what happens, such as "a red square moves left"."""
        thing = f"a {self.colour} {self.shape}"
        match self.kind:
            case "across":
                return f"{thing} moves {'right' if backwards else 'left'}"
            case "along":
                return f"{thing} moves {'down' if backwards else 'up'}"
            case "behind":
                way = "left" if backwards else "right"
                return f"{thing} passes to the {way} behind a {' '.join(reversed(self.other))}"
            case "presence":
                return f"{thing} {'disappears' if backwards else 'appears'}"
            case _:
                old, new = (self.colour, *self.other)[:: -1 if backwards else 1]
                return f"a {self.shape} turns from {old} to {new}"


@dataclass(frozen=True)
class MovingClip:
    """Pair of events in one of the `ORDERS`."""

    events: tuple[Event, Event]
    order: tuple[bool, bool, bool]

    def clauses(self) -> tuple[str, str]:
        """Clauses of the event that comes first and of the one that comes second."""
        swapped, *backwards = self.order
        first, second = (
            event.told(turned) for event, turned in zip(self.events, backwards, strict=True)
        )
        return (second, first) if swapped else (first, second)

    def captions(self) -> tuple[str, ...]:
        """Every caption of the clip."""
        first, second = self.clauses()
        return (
            f"{first}, then {second}",
            f"first {first}, and then {second}",
            f"{first} before {second}",
            f"{second} after {first}",
            f"after {first}, {second}",
        )

    def frame_numbers(self, frames: int) -> list[int]:
        """Order in which the clip shows the frames of its group."""
        swapped, *backwards = self.order
        half = (frames + 1) // 2
        shots = [list(range(half)), list(range(half, 2 * half))]
        first, second = (
            shot[::-1] if turned else shot for shot, turned in zip(shots, backwards, strict=True)
        )
        return (second + first if swapped else first + second)[:frames]


class MovingShapes(Grouped):
    """The `moving-shapes:` source.

    The galleries ("val", "test") are groups of four to eight distractors, and no two groups have
    the same events. The training split comes in blocks of four records: three blocks of four are
    one group, the fourth is four unrelated clips.

    Clips of a group have the same frames, to the bit, where an even number is read.

    Raises:
        ValueError: `split` is none of train, val, test.
    """

    kind = "moving-shapes"

    def captions(self, index: int) -> tuple[str, ...]:
        """Five captions, each of which tells the clip from every other of its group."""
        return self.clip(index)[0].captions()

    def is_video(self, index: int) -> bool:
        """True."""
        return True

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of a clip of `SECONDS` seconds, half of them of either event, each with its time,
        the middle of equal parts of the clip."""
        clip, drawing = self.clip(index)
        count = sampling.parts(SECONDS)
        drawn = _drawn(self.seed, self.split, drawing, clip.events, self.image_size, count)
        for place, number in enumerate(clip.frame_numbers(count)):
            frame = Image.fromarray(drawn[number])
            frame.info[FRAME_TIME] = FrameTime((place + 0.5) * SECONDS / count, SECONDS)
            yield frame

    def image(self, index: int) -> Image.Image:
        """Frame in the middle of the first event, RGB."""
        return next(self.frames(index, FrameSampling(1)))

    def clip(self, index: int) -> tuple[MovingClip, int]:
        """(clip of a record, number of its drawing, which the clips of a group share)."""
        start, member, size = self._group(index)
        if self.split == "train":
            rng = generator(self.seed, self.split, 0, start)
            if rng.random() < 0.25:
                rng = generator(self.seed, self.split, 1, index)
                return MovingClip(random_events(rng), ORDERS[rng.integers(len(ORDERS))]), index
            events = random_events(rng)
        else:
            events = self._events[start]
        rng = generator(self.seed, self.split, 1, start)
        return MovingClip(events, ORDERS[rng.permutation(len(ORDERS))[:size][member]]), start

    @cached_property
    def _events(self) -> dict[int, tuple[Event, Event]]:
        """{start of a group of a gallery: its events}, different from group to group."""
        found: dict[int, tuple[Event, Event]] = {}
        told: set[frozenset[str]] = set()
        for start in self._starts[:-1].tolist():
            rng = generator(self.seed, self.split, 0, start)
            while (clauses := _clauses(events := random_events(rng))) in told:
                continue
            told.add(clauses)
            found[start] = events
        return found


def random_events(rng: np.random.Generator) -> tuple[Event, Event]:
    """Two events of different objects."""
    shapes, colours = rng.permutation(SHAPES).tolist(), rng.permutation(list(COLOURS)).tolist()
    first, second = (
        Event(
            kind,
            shapes[i],
            colours[i],
            {"behind": (shapes[i + 2], colours[i + 2]), "colour": (colours[i + 2],)}.get(kind, ()),
        )
        for i, kind in enumerate(rng.choice(KINDS, 2).tolist())
    )
    return first, second


def _clauses(events: tuple[Event, Event]) -> frozenset[str]:
    """Everything that captions say of two events; equal for groups of equal captions."""
    return frozenset(event.told(backwards) for event in events for backwards in (False, True))


@lru_cache(maxsize=16)  # A group of clips has at most 8, of the same frames
def _drawn(
    seed: int, split: str, drawing: int, events: tuple[Event, Event], side: int, count: int
) -> UInt8[np.ndarray, "f s s 3"]:
    """Frames of two events, those of the first before those of the second, each run forwards.

    There are two halves of equal length, for an odd `count` one frame more than that.
    """
    rng = generator(seed, split, 2, drawing)
    shade, half = int(rng.integers(205, 250)), (count + 1) // 2
    frames = []
    for event in events:
        place, scale = rng.uniform(0.3, 0.7, 2), rng.uniform(0.95, 1.05)
        for i in range(half):
            canvas = new_canvas(side, shade)
            _paint_event(canvas, event, (i + 0.5) / half, place, scale)
            frames.append(noisy(canvas, rng))
    return np.stack(frames)


def _paint_event(
    canvas: Image.Image, event: Event, done: float, place: np.ndarray, scale: float
) -> None:
    """Paint an event of which the share `done` is over, at (x, y) but for where it moves."""
    (low, high), (x, y), colour = _FIELD, place, event.colour
    match event.kind:
        case "across":
            x = high + (low - high) * done
        case "along":
            y = high + (low - high) * done
        case "behind":
            x = low + (high - low) * done
        case "presence" if done < 0.5:
            return
        case "colour" if done >= 0.5:
            (colour,) = event.other
    paint(canvas, event.shape, colour, np.array([x, y]), _RADIUS * scale)
    if event.kind == "behind":
        shape, colour = event.other
        paint(canvas, shape, colour, np.array([0.5, y]), _COVER * scale)
