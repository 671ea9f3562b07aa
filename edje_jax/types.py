"""Types that data and models share: the source protocol and the batch structs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, UInt8
from PIL import Image

from edje_jax.config.frames import FrameSampling

ArrayT = TypeVar("ArrayT", Array, np.ndarray)
"""A function of arrays that answers in kind: NumPy to NumPy, JAX to JAX."""

Scalar = str | int | float | bool
"""A value of an image's metadata."""


@runtime_checkable
class Source(Protocol):
    """Images with captions, readable in any order and from many processes (it pickles)."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def image_id(self, index: int) -> str:
        """Identity of an image; records that show the same image share it."""
        ...

    def captions(self, index: int) -> Sequence[str]:
        """Captions of an image as they are in the set; empty for a set without captions."""
        ...

    def image(self, index: int) -> Image.Image:
        """Decoded image, upright and RGB.

        Raises:
            BadImage: the file is missing, truncated or not an image.
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
        """Records that were left out; no index leads to them."""
        ...

    def caption_faults(self, index: int) -> str:
        """Faults of the captions that `captions` leaves out of an image; "" if there are none."""
        ...


class FrameTime(NamedTuple):
    """Place of a frame in its video, in seconds."""

    shown: float
    """Time at which the frame is shown, from the beginning of the video."""
    length: float
    """Length of the video."""


FRAME_TIME = "frame_time"
"""Key of a frame's `info` that holds its `FrameTime`."""


@runtime_checkable
class HasVideos(Protocol):
    """A source whose items may be videos; an item of any other source is one frame, its image.

    `image` of a video is the frame in its middle, and `path` and `encoded`, where a source has
    them, are of the video's file.
    """

    def is_video(self, index: int) -> bool:
        """Whether an item is a video, and not an image."""
        ...

    def frames(self, index: int, sampling: FrameSampling) -> Iterator[Image.Image]:
        """Frames of a video in the order in which they are shown, upright and RGB.

        There are at least one and at most `sampling.frames`; each is decoded when it is asked for,
        and has its time in `info` (`FRAME_TIME`), where the source knows it.

        Raises:
            BadImage: the video cannot be read; also after some frames.
        """
        ...


@runtime_checkable
class OnDisk(Protocol):
    """A source whose images are files of their own."""

    def path(self, index: int) -> str:
        """Path of an image's file."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """A source whose images are kept as files or as the bytes of files."""

    def encoded(self, index: int) -> bytes:
        """File of an image as it is kept.

        Raises:
            BadImage: it is missing or cannot be read.
        """
        ...


@runtime_checkable
class Stamped(Protocol):
    """A source that can tell whether an image may have changed without reading it."""

    def stamp(self, index: int) -> str:
        """Text that changes where the image may have changed; "" if that cannot be told.

        Raises:
            OSError, ValueError: the image's file is missing or cannot be looked up.
        """
        ...


@runtime_checkable
class Described(Protocol):
    """A source that has metadata of its images: named values, such as a year or a licence."""

    def metadata(self, index: int) -> Mapping[str, Scalar]:
        """Metadata of an image; a name is absent where the image has no such value.

        Raises:
            BadImage: it lies with the image, and cannot be read.
        """
        ...


@runtime_checkable
class PartOfSource(Protocol):
    """A source whose records are some of another one's."""

    @property
    def source(self) -> Source:
        """The other source."""
        ...

    def record(self, index: int) -> int:
        """Index of a record in the other source."""
        ...


class Frames(NamedTuple):
    """Frames of videos as a model takes them; an image is a video of one frame."""

    pixels: UInt8[Any, "b f s s 3"] | Float32[Any, "b f s s 3"]
    """Frames in the order in which they are shown, resized, and normalised if they are floats; what
    follows a video's last frame counts for nothing."""
    present: Bool[Any, "b f"]
    """Whether there is such a frame; each video has one at least."""


class Features(NamedTuple):
    """Features of a batch from the frozen backbone."""

    vision_tokens: Float[Any, "b *f n w"]
    """Tokens of images, or of videos frame by frame: all zeros where there is no frame."""
    image_embeddings: Float[Any, "b e"]
    text_embeddings: Float[Any, "b e"]


class Batch(NamedTuple):
    """Input of a training step: NumPy arrays on the host, JAX arrays inside a step.

    Each leaf has B rows. Rows with `valid` False hold an image that could not be read: they count
    in no loss.
    """

    images: UInt8[Any, "b s s 3"] | Frames | None
    """Resized images, not normalised, or frames; None where their features were kept."""
    backbone_ids: Int[Any, "b l"]
    """Caption in the backbone's tokens, padded to its full length; L is 0 where features were
    kept."""
    joint_ids: Int[Any, "b t"]
    """[CLS] caption [SEP] in the joint encoder's tokens, then its pad id."""
    image_ids: Int[Any, " b"]
    """Equal for rows that show the same image."""
    caption_ids: Int[Any, " b"]
    """Equal for rows with the same canonical caption."""
    valid: Bool[Any, " b"]
    extra_labels: Int[Any, "b ..."] | None = None
    """Labels of each image besides its caption, where a task asked for some (`data.loader`)."""
    features: Features | None = None
    """Backbone features of an earlier run (`data.feature_cache`)."""
