"""Captioned set whose gallery also holds the images of a pool, which are no queries."""

from collections.abc import Iterator, Mapping, Sequence

from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.images import file_bytes, frames_of, is_video
from edje_jax.data.metadata import metadata_of
from edje_jax.types import Scalar, Source


class Pooled:
    """`source`, and after it the images of `pool` without their captions: distractors.

    An image of the pool whose id stands in the set, or earlier in the pool, is the same image
    and left out; `left_out` counts those.
    """

    def __init__(self, source: Source, pool: Source):
        self.source, self.pool = source, pool
        seen = {source.image_id(i) for i in range(len(source))}
        self._rows: list[int] = []
        for i in range(len(pool)):
            if (name := pool.image_id(i)) not in seen:
                seen.add(name)
                self._rows.append(i)
        self.left_out = len(pool) - len(self._rows)
        self.bad = (*left_out(source), *left_out(pool))

    def __len__(self) -> int:
        return len(self.source) + len(self._rows)

    def image_id(self, index: int) -> str:
        """Id of an image in the set or in the pool."""
        source, row = self._place(index)
        return source.image_id(row)

    def captions(self, index: int) -> Sequence[str]:
        """Captions of an image of the set; none for one of the pool."""
        return self.source.captions(index) if index < len(self.source) else ()

    def caption_faults(self, index: int) -> str:
        """Faults of an image's captions; "" for one of the pool, whose captions are not read."""
        return caption_faults(self.source, index) if index < len(self.source) else ""

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Metadata of an image in the set or in the pool."""
        return metadata_of(*self._place(index))

    def encoded(self, index: int) -> bytes:
        """File of an image; `BadImage` if it cannot be read."""
        return file_bytes(*self._place(index))

    def image(self, index: int) -> Image.Image:
        """Image, upright and RGB; `BadImage` if it cannot be read."""
        source, row = self._place(index)
        return source.image(row)

    def is_video(self, index: int) -> bool:
        """Whether an item is a video."""
        return is_video(*self._place(index))

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of an item; `BadImage` if it cannot be read."""
        return frames_of(*self._place(index), sampling)

    def _place(self, index: int) -> tuple[Source, int]:
        own = len(self.source)
        return (self.source, index) if index < own else (self.pool, self._rows[index - own])
