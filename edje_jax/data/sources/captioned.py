"""What sources share that hold ids and captions in memory and read pictures when asked."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64
from PIL import Image

from edje_jax.data.images import decode
from edje_jax.data.sources.packed import PackedStrings

log = logging.getLogger(__name__)


class Captioned(ABC):
    """Ids and captions of pictures; a subclass says `encoded` and may say `place`.

    Args:
        name: what messages call the set.
        starts: where each picture's captions begin among all; the last is their number.
    """

    def __init__(
        self,
        name: str,
        ids: PackedStrings,
        captions: PackedStrings,
        starts: Int64[np.ndarray, " n+1"],
    ):
        self.name = name
        self._ids, self._captions, self._starts = ids, captions, starts

    def __len__(self) -> int:
        return len(self._ids)

    def image_id(self, index: int) -> str:
        """The picture's identity."""
        return self._ids[self._checked(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of the picture, in the set's order."""
        start, end = self._starts[self._checked(index) : index + 2]
        return tuple(self._captions[i] for i in range(start, end))

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """The picture's file as it is kept; `BadImage` if it cannot be read."""

    def place(self, index: int) -> str:
        """What messages call the picture."""
        return f"{self.name}: {self.image_id(index)}"

    def image(self, index: int) -> Image.Image:
        """The picture, upright and RGB; `BadImage` if it cannot be read."""
        return decode(self.encoded(index), self.place(index))

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} pictures, asked for {index}")
        return index


def packed(
    captions: Sequence[Sequence[str]],
) -> tuple[PackedStrings, Int64[np.ndarray, " n+1"]]:
    """Every picture's captions as `Captioned` takes them: (captions, starts)."""
    starts = np.cumsum([0, *map(len, captions)], dtype=np.int64)
    return PackedStrings(text for texts in captions for text in texts), starts


def merged(
    ids: Iterable[str], captions: Iterable[Sequence[str]]
) -> tuple[list[int], list[str], list[list[str]]]:
    """Rows of one id become one picture with all their captions, where the first of them stands.

    Returns:
        (row of each picture, id of each, captions of each).
    """
    place: dict[str, int] = {}
    rows: list[int] = []
    texts: list[list[str]] = []
    row = -1
    for row, (name, own) in enumerate(zip(ids, captions, strict=True)):
        at = place.setdefault(name, len(rows))
        if at == len(rows):
            rows.append(row)
            texts.append([])
        texts[at].extend(own)
    if len(rows) < (count := row + 1):
        log.info("%d rows are %d pictures", count, len(rows))
    return rows, list(place), texts
