"""Types that data and models share: the source protocol and the batch structs."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

ArrayT = TypeVar("ArrayT", Array, np.ndarray)
"""A function of arrays that answers in kind: NumPy to NumPy, JAX to JAX."""


@runtime_checkable
class Source(Protocol):
    """Pictures with captions, readable in any order and from many processes (it pickles)."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def image_id(self, index: int) -> str:
        """The picture's identity; records that show the same picture share it."""
        ...

    def captions(self, index: int) -> Sequence[str]:
        """The picture's captions as they are in the set; empty for a set without captions."""
        ...

    def image(self, index: int) -> Image.Image:
        """The decoded picture, upright and RGB.

        Raises:
            BadImage: the file is missing, truncated or not a picture.
        """
        ...


class BadRecord(NamedTuple):
    """A record that a source found when it was opened and had to leave out."""

    where: str
    """File and record, such as "train.json: entry 3"."""
    reason: str
    """Fault of the record, and the remedy."""


@runtime_checkable
class Checked(Protocol):
    """A source that leaves out what it cannot use, record by record, and says so."""

    @property
    def bad(self) -> Sequence[BadRecord]:
        """The records that were left out; no index leads to them."""
        ...

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that `captions` leaves out of an image; "" if there are none."""
        ...


@runtime_checkable
class OnDisk(Protocol):
    """A source whose images are files of their own."""

    def path(self, index: int) -> str:
        """Path of an image's file."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """A source whose pictures are kept as files or as the bytes of files."""

    def encoded(self, index: int) -> bytes:
        """The picture's file as it is kept.

        Raises:
            BadImage: it is missing or cannot be read.
        """
        ...


@runtime_checkable
class Stamped(Protocol):
    """A source that can tell whether an image may have changed without reading it."""

    def stamp(self, index: int) -> str:
        """Another text than before, if the image may be another one; "" if that cannot be told.

        Raises:
            OSError, ValueError: the image's file is missing or cannot be looked up.
        """
        ...


@runtime_checkable
class PatchLabelled(Protocol):
    """A source that can say what each patch of a picture holds."""

    @property
    def patch_label_sizes(self) -> tuple[int, ...]:
        """Number of classes of each attribute, background included."""
        ...

    def patch_labels(self, index: int, grid: int) -> Int[np.ndarray, "n a"]:
        """Class of each of grid x grid patches, attribute by attribute; 0 is background."""
        ...


class Features(NamedTuple):
    """Features of a batch from the frozen backbone."""

    vision_tokens: Float[Any, "b n w"]
    image_embeddings: Float[Any, "b e"]
    text_embeddings: Float[Any, "b e"]


class Batch(NamedTuple):
    """Input of a training step: NumPy arrays on the host, JAX arrays inside a step.

    Each leaf has B rows. Rows with `valid` False hold a picture that could not be read, or pad a
    last batch: they count in no loss.
    """

    images: UInt8[Any, "b s s 3"] | None
    """Resized pictures, not normalised; None where their features were kept."""
    backbone_ids: Int[Any, "b l"]
    """The caption in the backbone's tokens, padded to its full length."""
    joint_ids: Int[Any, "b t"]
    """[CLS] caption [SEP] in the joint encoder's tokens, then its pad id."""
    image_ids: Int[Any, " b"]
    """Equal for rows that show the same picture."""
    caption_ids: Int[Any, " b"]
    """Equal for rows with the same canonical caption."""
    valid: Bool[Any, " b"]
    patch_labels: Int[Any, "b n a"] | None = None
    """Labels of each patch, if the source has them (`shapes:`); 0 is background."""
    features: Features | None = None
    """Backbone features of an earlier run (`data.feature_cache`)."""
