"""Some pictures of a set."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

from edje_jax.data.bad_pictures import caption_faults, left_out
from edje_jax.data.images import file_bytes
from edje_jax.types import BadRecord, PatchLabelled, Source

log = logging.getLogger(__name__)


def subset(source: Source, kept: Bool[np.ndarray, " n"]) -> Source:
    """The pictures of `source` that are kept, which can all that the source can."""
    return (LabelledSubset if isinstance(source, PatchLabelled) else Subset)(source, kept)


class Subset:
    """Some pictures of a source; captions and ids are theirs.

    `bad` is empty: what the whole set left out is not of these.
    """

    bad: Sequence[BadRecord] = ()

    def __init__(self, source: Source, kept: Bool[np.ndarray, " n"]):
        self.source, self._rows = source, np.flatnonzero(kept)

    def __len__(self) -> int:
        return len(self._rows)

    def image_id(self, index: int) -> str:
        """The picture's id in the whole set."""
        return self.source.image_id(self._row(index))

    def captions(self, index: int) -> Sequence[str]:
        """The picture's captions."""
        return self.source.captions(self._row(index))

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image; "" if there are none."""
        return caption_faults(self.source, self._row(index))

    def encoded(self, index: int) -> bytes:
        """The picture's file; `BadImage` if it cannot be read."""
        return file_bytes(self.source, self._row(index))

    def image(self, index: int) -> Image.Image:
        """The picture, upright and RGB; `BadImage` if it cannot be read."""
        return self.source.image(self._row(index))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} pictures, asked for {index}")
        return int(self._rows[index])


class LabelledSubset(Subset):
    """Subset of a source that labels its patches."""

    source: PatchLabelled

    @property
    def patch_label_sizes(self) -> tuple[int, ...]:
        """As the whole set has them."""
        return self.source.patch_label_sizes

    def patch_labels(self, index: int, grid: int) -> np.ndarray:
        """The picture's, as the whole set has them."""
        return self.source.patch_labels(self._row(index), grid)


def joined(source: Source) -> Source:
    """The source with each id once, which most have anyway: see `Joined`."""
    found = Joined(source)
    if len(found) == len(source):
        return source
    log.info("%d records are %d pictures", len(source), len(found))
    return found


class Joined(Subset):
    """The first record of every id, with the captions of all that share it, each once."""

    def __init__(self, source: Source):
        first: dict[str, int] = {}
        self._also: dict[int, list[int]] = defaultdict(list)
        kept = np.ones(len(source), bool)
        for record in range(len(source)):
            before = first.setdefault(source.image_id(record), record)
            if before != record:
                self._also[before].append(record)
                kept[record] = False
        super().__init__(source, kept)
        self.bad = left_out(source)

    def captions(self, index: int) -> Sequence[str]:
        """The captions of all records of the picture."""
        texts = (text for record in self._records(index) for text in self.source.captions(record))
        return tuple(dict.fromkeys(texts))

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image's records; "" if there are none."""
        faults = (caption_faults(self.source, record) for record in self._records(index))
        return "; ".join(filter(None, faults))

    def _records(self, index: int) -> list[int]:
        record = self._row(index)
        return [record, *self._also.get(record, [])]
