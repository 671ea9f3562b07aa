"""Frames of a video that are read."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FrameSampling:
    """Choice of the frames of a video, at most `frames` of them.

    Raises:
        ValueError: `frames` is below 1, or `rate` is not above 0.
    """

    frames: int = 8
    """Most frames of a video; a shorter video has fewer."""
    by: Literal["uniform", "rate", "keyframes"] = "uniform"
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

    def parts(self, seconds: float) -> int:
        """Number of equal parts that a video of so many seconds is cut into."""
        if self.by != "rate":
            return self.frames
        return max(1, min(self.frames, round(self.rate * seconds)))
