"""Some images of a set."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.images import file_bytes, frames_of, is_video
from edje_jax.data.metadata import metadata_of
from edje_jax.types import BadRecord, Scalar, Source

log = logging.getLogger(__name__)


class Subset:
    """Some images of a source, with their captions and ids.

    `bad` is empty: what the whole set left out is not of these.

    Args:
        kept: whether each image of the source is one of them.
        captions: captions of an image that are kept, its first ones; None keeps all.
    """

    bad: Sequence[BadRecord] = ()

    def __init__(self, source: Source, kept: Bool[np.ndarray, " n"], captions: int | None = None):
        self.source, self._records = source, np.flatnonzero(kept)
        self._first_captions = slice(captions)

    def __len__(self) -> int:
        return len(self._records)

    def image_id(self, index: int) -> str:
        """Id of an image in the whole set."""
        return self.source.image_id(self.record(index))

    def captions(self, index: int) -> Sequence[str]:
        """Captions of an image that are kept."""
        return self.source.captions(self.record(index))[self._first_captions]

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image; "" if there are none."""
        return caption_faults(self.source, self.record(index))

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Metadata of an image in the whole set."""
        return metadata_of(self.source, self.record(index))

    def encoded(self, index: int) -> bytes:
        """File of an image; `BadImage` if it cannot be read."""
        return file_bytes(self.source, self.record(index))

    def image(self, index: int) -> Image.Image:
        """Image, upright and RGB; `BadImage` if it cannot be read."""
        return self.source.image(self.record(index))

    def is_video(self, index: int) -> bool:
        """Whether an item is a video."""
        return is_video(self.source, self.record(index))

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of an item; `BadImage` if it cannot be read."""
        return frames_of(self.source, self.record(index), sampling)

    def record(self, index: int) -> int:
        """Index of a record in the whole set."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} images, asked for {index}")
        return int(self._records[index])


def merge_by_id(source: Source) -> Source:
    """Source with each id once, which most have anyway: see `Joined`."""
    found = Joined(source)
    if len(found) == len(source):
        return source
    log.info("%d records are %d images", len(source), len(found))
    return found


class Joined(Subset):
    """First record of every id, with the captions of all that share it, each once."""

    def __init__(self, source: Source):
        first: dict[str, int] = {}
        self._further: dict[int, list[int]] = defaultdict(list)
        kept = np.ones(len(source), bool)
        for record in range(len(source)):
            before = first.setdefault(source.image_id(record), record)
            if before != record:
                self._further[before].append(record)
                kept[record] = False
        super().__init__(source, kept)
        self.bad = left_out(source)

    def captions(self, index: int) -> Sequence[str]:
        """Captions of all records of an image."""
        texts = (text for record in self._of_image(index) for text in self.source.captions(record))
        return tuple(dict.fromkeys(texts))

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that are left out of an image's records; "" if there are none."""
        faults = (caption_faults(self.source, record) for record in self._of_image(index))
        return "; ".join(filter(None, faults))

    def _of_image(self, index: int) -> list[int]:
        record = self.record(index)
        return [record, *self._further.get(record, [])]
