"""Frames of a video that are read, and what a model keeps of them."""

from dataclasses import dataclass, field
from typing import Literal, get_args

FramePooling = Literal["none", "mean"]
"""Ways from the tokens of frames to those of a video."""
SamplingBy = Literal["uniform", "rate", "keyframes"]
"""Ways to choose the frames of a video."""


@dataclass(frozen=True)
class FrameSampling:
    """Choice of the frames of a video, at most `frames` of them.

    Raises:
        ValueError: `frames` is below 1, `rate` is not above 0, or there is no such way to choose.
    """

    frames: int = 8
    """Most frames of a video; a shorter video has fewer."""
    by: SamplingBy = "uniform"
    """"uniform" takes the frames shown in the middles of `frames` equal parts of the video, "rate"
    those of as many parts as give `rate` frames a second, "keyframes" the frames that are coded
    without others, spread evenly over them where there are too many."""
    rate: float = 1.0
    """Frames a second, for "rate"."""

    def __post_init__(self):
        if self.frames < 1:
            raise ValueError(f"frames {self.frames}: read at least 1 frame of a video")
        if not self.rate > 0:
            raise ValueError(f"rate {self.rate}: give frames a second, above 0")
        if self.by not in get_args(SamplingBy):
            raise ValueError(f'by "{self.by}": {", ".join(get_args(SamplingBy))}')

    @property
    def words(self) -> str:
        """The choice in words, such as "8 frames, from the middles of as many equal parts"."""
        frames = f"{self.frames} frame{'s' if self.frames > 1 else ''}"
        if self.by == "rate":
            return f"{self.rate:g} frames a second, {frames} at most, spread evenly"
        if self.by == "keyframes":
            return f"{frames} at most, of those that are coded without others"
        return f"{frames}, from the middles of as many equal parts"

    def parts(self, seconds: float) -> int:
        """Number of equal parts that a video of so many seconds is cut into."""
        if self.by != "rate":
            return self.frames
        return max(1, min(self.frames, round(self.rate * seconds)))


@dataclass(frozen=True)
class VideoConfig:
    """Videos as a model reads and keeps them (`models.frames`)."""

    sampling: FrameSampling = field(default_factory=FrameSampling)
    """Choice of the frames, which is the model's: it was trained on such."""
    pooling: FramePooling = "none"
    """"none" keeps the tokens of each frame, in the order of the frames; "mean" keeps their mean
    over the frames, which knows no order."""

    def __post_init__(self):
        if self.pooling not in get_args(FramePooling):
            known = " or ".join(get_args(FramePooling))
            raise ValueError(f'pooling "{self.pooling}": {known}')
