"""Several sets as one: `a+b` joins them, `a@0.7+b@0.3` samples them in these proportions."""

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np
from PIL import Image

from edje_jax.config.frames import FrameSampling
from edje_jax.data.bad_records import caption_faults, left_out
from edje_jax.data.images import file_bytes, frames_of, is_video
from edje_jax.data.metadata import metadata_of
from edje_jax.data.stamps import stamp_of
from edje_jax.types import Scalar, Source


class Mixture:
    """Image i of an epoch is a fixed image of one of the sets, which stand one after another.

    Without weights every image stands in the epoch once. With weights w (made to sum to 1), the
    epoch is the shortest in which every image appears and the sets have their shares: N = max
    over the sets of n / w, rounded up. Set s then has round(w N) places, at least n of them, filled
    by its images in turn: one set is seen once, all others as often as their weight asks. The
    loader shuffles all places together.

    An image's id is `prefix/id`. The same image in two sets of the same prefix is one image.

    Args:
        prefixes: what ids of each set begin with; equal for splits of the same set.
        weights: positive, or none at all.
    """

    def __init__(
        self, sources: Sequence[Source], prefixes: Sequence[str], weights: Sequence[Fraction] = ()
    ):
        self.sources, self.prefixes = tuple(sources), tuple(prefixes)
        self.weights = tuple(weights)
        self.bad = tuple(record for source in sources for record in left_out(source))
        sizes = [len(source) for source in sources]
        if weights:
            shares = [weight / sum(weights) for weight in weights]
            epoch = max(math.ceil(n / share) for n, share in zip(sizes, shares, strict=True))
            places = [max(round(share * epoch), n) for n, share in zip(sizes, shares, strict=True)]
        else:
            places = sizes
        self._starts = np.cumsum([0, *places])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def images(self) -> int:
        """Images of all sets, each counted once."""
        return sum(map(len, self.sources))

    def of(self, sources: Sequence[Source]) -> "Mixture":
        """Other sets under the same prefixes, mixed with the same weights."""
        return Mixture(sources, self.prefixes, self.weights)

    def image_id(self, index: int) -> str:
        """The set's prefix and the image's id in it."""
        number, record = self.at(index)
        return f"{self.prefixes[number]}/{self.sources[number].image_id(record)}"

    def captions(self, index: int) -> Sequence[str]:
        """The image's captions in its set."""
        number, record = self.at(index)
        return self.sources[number].captions(record)

    def stamp(self, index: int) -> str:
        """The set's stamp of the image."""
        number, record = self.at(index)
        return stamp_of(self.sources[number], record)

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that the data set leaves out of an image; "" if there are none."""
        number, record = self.at(index)
        return caption_faults(self.sources[number], record)

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """The image's metadata in its set."""
        number, record = self.at(index)
        return metadata_of(self.sources[number], record)

    def encoded(self, index: int) -> bytes:
        """The image's file; `BadImage` if it cannot be read."""
        number, record = self.at(index)
        return file_bytes(self.sources[number], record)

    def image(self, index: int) -> Image.Image:
        """The image, upright and RGB; `BadImage` if it cannot be read."""
        number, record = self.at(index)
        return self.sources[number].image(record)

    def is_video(self, index: int) -> bool:
        """Whether an item is a video."""
        number, record = self.at(index)
        return is_video(self.sources[number], record)

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of an item; `BadImage` if it cannot be read."""
        number, record = self.at(index)
        return frames_of(self.sources[number], record, sampling)

    def at(self, index: int) -> tuple[int, int]:
        """(number of the set, index in it) of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"the mixture has {len(self)} images, asked for {index}")
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, (index - int(self._starts[number])) % len(self.sources[number])
