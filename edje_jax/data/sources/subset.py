"""Some pictures of a set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

from edje_jax.data.encoding import file_bytes
from edje_jax.types import PatchLabelled, Source


def subset(source: Source, kept: Bool[np.ndarray, " n"]) -> Source:
    """The pictures of `source` that are kept, which can all that the source can."""
    return (LabelledSubset if isinstance(source, PatchLabelled) else Subset)(source, kept)


class Subset:
    """Some pictures of a source; captions and ids are theirs."""

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
    """One that knows what its patches hold."""

    source: PatchLabelled

    @property
    def patch_label_sizes(self) -> tuple[int, ...]:
        """As the whole set has them."""
        return self.source.patch_label_sizes

    def patch_labels(self, index: int, grid: int) -> np.ndarray:
        """The picture's, as the whole set has them."""
        return self.source.patch_labels(self._row(index), grid)
