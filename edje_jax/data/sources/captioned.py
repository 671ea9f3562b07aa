"""Base of sources that hold ids and captions in memory and read images on request."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64
from PIL import Image

from edje_jax.data.images import decode
from edje_jax.data.sources.packed import PackedStrings
from edje_jax.types import BadRecord

log = logging.getLogger(__name__)


class Captioned(ABC):
    """Ids and captions of images; a subclass has `encoded` and may have `describe`.

    Args:
        name: what messages call the set.
        starts: where each image's captions begin among all; the last is their number.
        faults: {index: what is wrong with captions of an image that are left out, and where}.
        bad: the records that are left out.
        joined: records that became part of an earlier one's image.
    """

    def __init__(
        self,
        name: str,
        ids: PackedStrings,
        captions: PackedStrings,
        starts: Int64[np.ndarray, " n+1"],
        faults: Mapping[int, str] = MappingProxyType({}),
        bad: Sequence[BadRecord] = (),
        joined: int = 0,
    ):
        self.name, self.bad, self.joined = name, tuple(bad), joined
        self._faults = dict(faults)
        self._ids, self._captions, self._starts = ids, captions, starts

    def __len__(self) -> int:
        return len(self._ids)

    def image_id(self, index: int) -> str:
        """The image's identity."""
        return self._ids[self._checked(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of the image, in the set's order."""
        start, end = self._starts[self._checked(index) : index + 2]
        return tuple(self._captions[i] for i in range(start, end))

    def split_lines(self) -> None:
        """Make every line of a text a caption of its own; blank ones are none."""
        self._captions, self._starts = pack_captions(
            [lines_of(self.captions(index)) for index in range(len(self))]
        )

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image, and their place; "" if none."""
        return self._faults.get(self._checked(index), "")

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The image's file as it is kept; `BadImage` if it cannot be read."""

    def describe(self, index: int) -> str:
        """Name of an image in messages."""
        return f"{self.name}: {self.image_id(index)}"

    def image(self, index: int) -> Image.Image:
        """The image, upright and RGB; `BadImage` if it cannot be read."""
        return decode(self.encoded(index), self.describe(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} images, asked for {index}")
        return index


def lines_of(captions: Iterable[str]) -> list[str]:
    """The lines of some texts that are not blank."""
    # At line feeds alone: a caption may hold other characters that Unicode breaks lines at.
    lines = (line.strip() for text in captions for line in text.split("\n"))
    return [line for line in lines if line]


def pack_captions(
    captions: Sequence[Sequence[str]],
) -> tuple[PackedStrings, Int64[np.ndarray, " n+1"]]:
    """Every image's captions as `Captioned` takes them: (captions, starts)."""
    starts = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    return PackedStrings(text for texts in captions for text in texts), starts


@dataclass(frozen=True)
class Merged:
    """Records of one id as one image with all their captions, where the first of them stands."""

    rows: list[int]
    """The first record of each image."""
    ids: list[str]
    captions: list[list[str]]
    faults: dict[int, str]
    """{image: what is wrong with captions of its records}."""
    joined: int
    """Records that became part of an earlier one's image."""


def merge_records(
    ids: Iterable[str], captions: Iterable[Sequence[str]], faults: Mapping[int, str]
) -> Merged:
    """Join the records of one id; `faults` are by record."""
    place: dict[str, int] = {}
    rows: list[int] = []
    texts: list[list[str]] = []
    wrong: dict[int, str] = {}
    row = -1
    for row, (name, own) in enumerate(zip(ids, captions, strict=True)):
        at = place.setdefault(name, len(rows))
        if at == len(rows):
            rows.append(row)
            texts.append([])
        texts[at].extend(own)
        if row in faults:
            wrong[at] = f"{wrong[at]}; {faults[row]}" if at in wrong else faults[row]
    if joined := row + 1 - len(rows):
        log.info("%d rows are %d images", row + 1, len(rows))
    return Merged(rows, list(place), texts, wrong, joined)
