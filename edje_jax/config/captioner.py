"""Shape of a captioner: the decoder that scores a pair by how well an image explains a caption."""

from dataclasses import dataclass
from typing import Literal, get_args

Directions = Literal["both", "forward", "backward"]
"""Orders in which the caption's tokens are predicted."""

CaptionScore = Literal["sum", "mean", "pmi"]
"""Ways to make a score of the tokens' log-probabilities (`models.captioner`)."""

CrossAttention = Literal["projected", "stored"]
"""Keys and values by which a decoder reads an image."""


@dataclass(frozen=True)
class CaptionerConfig:
    """A model that scores pairs by captioning (`models.captioner`)."""

    directions: Directions = "both"
    """"forward" reads a caption from its first token, "backward" from its last, each with layers of
    its own; "both" adds the two scores."""
    score: CaptionScore = "pmi"
    """"sum" of log p over the caption's tokens; their "mean"; or "pmi", the sum less what the same
    decoder gives the caption without an image. Without a mixture with the first stage's cosine all
    three order the images of a caption alike; the captions of an image, of other lengths or of
    rarer words, they order in other ways."""
    cross_attention: CrossAttention = "projected"
    """"projected": every layer makes keys and values of the stored tokens, for every pair.
    "stored": the stored tokens are the keys and the values of all layers, so that a pair costs no
    product with an image's tokens but attention itself, which pays where these are many."""

    def __post_init__(self):
        for name, choices in (
            ("directions", Directions),
            ("score", CaptionScore),
            ("cross_attention", CrossAttention),
        ):
            if (value := getattr(self, name)) not in get_args(choices):
                raise ValueError(f'captioner: {name} "{value}": {", ".join(get_args(choices))}')

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the decoders."""
        return ("forward", "backward") if self.directions == "both" else (self.directions,)
