"""Settings of a training run that name the parts of its model."""

from dataclasses import dataclass, field
from typing import Literal

from edje_jax.config.captioner import CaptionerConfig, CaptionScore, CrossAttention, Directions
from edje_jax.config.frames import FramePooling, FrameSampling, SamplingBy, VideoConfig
from edje_jax.config.model import (
    AdapterConfig,
    BertConfig,
    IccProfile,
    ModelKind,
    OnlineVision,
    TextRecipe,
    Transparency,
    Upsampling,
)


def at_least(least: int, values: dict[str, float | None], or_none: bool = False) -> None:
    """Check {option: its value}; None, which is "not given" and may be where `or_none`, passes.

    Raises:
        ValueError: a value is less than the least.
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            remedy = "; None takes the default" if or_none else ""
            raise ValueError(f"{name} {value}: the least is {least}{remedy}")


@dataclass(frozen=True)
class AdapterSpec:
    """The adapter of a run. What is left out is that of --init, or else as published: `compress`,
    64 tokens, 8192 wide."""

    kind: Literal["local", "compress"] | None = None
    num_tokens: int | None = None
    """Tokens that `compress` makes of an image; `local` keeps every vision token."""
    intermediate_size: int | None = None
    upsampling: Upsampling | None = None
    """Factor of the side of the grid that the adapter reads, made of the last and of earlier layers
    of the backbone (`models.upsampling`); `local` then keeps its square times as many tokens."""

    def __post_init__(self):
        at_least(
            1,
            {
                "--model.adapter.num-tokens": self.num_tokens,
                "--model.adapter.intermediate-size": self.intermediate_size,
            },
        )

    def resolve(self, start: AdapterConfig | None) -> AdapterConfig:
        """Complete adapter of a run, which may start from a model with the adapter `start`.

        Raises:
            ValueError: a number of tokens is asked of a `start` that does not compress.
        """
        base = start or AdapterConfig()
        kind = self.kind or base.kind
        if kind == "local":
            if self.num_tokens and not self.kind:
                raise ValueError(
                    f"--model.adapter.num-tokens {self.num_tokens}: the adapter of --init is local"
                    " and keeps every vision token; leave it out, or add --model.adapter.kind"
                    " compress for another"
                )
            tokens = base.num_tokens if base.kind == "local" else 0
        else:
            tokens = self.num_tokens or base.num_tokens or AdapterConfig().num_tokens
        return AdapterConfig(
            kind,
            tokens,
            self.intermediate_size or base.intermediate_size,
            self.upsampling or base.upsampling,
        )


@dataclass(frozen=True)
class CaptionerSpec:
    """A captioner's settings, see `CaptionerConfig` (default: those of --init, or its own)."""

    directions: Directions | None = None
    score: CaptionScore | None = None
    cross_attention: CrossAttention | None = None

    def resolve(self, start: CaptionerConfig | None) -> CaptionerConfig:
        """Complete settings of a run, which may start from those of `start`."""
        base = start or CaptionerConfig()
        return CaptionerConfig(
            self.directions or base.directions,
            self.score or base.score,
            self.cross_attention or base.cross_attention,
        )


@dataclass(frozen=True)
class VideoSpec:
    """Videos of a run. One setting makes the model read videos, and what is left out is that of
    --init, or else 8 frames, evenly spread; without any the model reads images, or videos as that
    of --init does."""

    frames: int | None = None
    """Frames of a video that are read, at most. `adapter.num_tokens` counts the tokens of one."""
    by: SamplingBy | None = None
    """Choice of the frames: "uniform", "rate" or "keyframes" (see `FrameSampling`)."""
    rate: float | None = None
    """Frames a second that "rate" reads."""
    pooling: FramePooling | None = None
    """"none" keeps the tokens of each frame, "mean" their mean over the frames, which knows no
    order."""

    def __post_init__(self):
        at_least(1, {"--model.video.frames": self.frames}, or_none=True)
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--model.video.rate {self.rate}: frames a second, above 0")

    def resolve(self, start: VideoConfig | None) -> VideoConfig | None:
        """Complete settings of a run, which may start from a model with those of `start`; None for
        a model of images.

        Raises:
            ValueError: a rate is given, and frames are not chosen by it.
        """
        if start is None and self == VideoSpec():
            return None
        base = start or VideoConfig()
        by, rate = self.by or base.sampling.by, self.rate or base.sampling.rate
        if self.rate is not None and by != "rate":
            raise ValueError(
                f"--model.video.rate {self.rate}: frames are chosen by {by}; add --model.video.by"
                " rate, or leave it out"
            )
        rate = rate if by == "rate" else FrameSampling.rate
        sampling = FrameSampling(self.frames or base.sampling.frames, by, rate)
        return VideoConfig(sampling, self.pooling or base.pooling)


@dataclass(frozen=True)
class ModelSpec:
    """Parts that an EDJE or a captioner is assembled from."""

    kind: ModelKind | None = None
    """Kind of the model that scores pairs: "edje", a joint encoder, or "captioner" (default: as in
    --init, or else "edje")."""
    backbone: str | None = None
    """Folder or hub id of the dual encoder, in Hugging Face's format: SigLIP, SigLIP2 or CLIP;
    shapes-backbone is the small one that ships with the package."""
    token_layer: int | None = None
    """Layer of the backbone that vision tokens come from, -1 for the last, -2 for the one before
    (default: its family's, the last of SigLIP, the one before of CLIP)."""
    class_token: bool = False
    """Keep CLIP's class token among the vision tokens."""
    joint_encoder: str | None = None
    """Folder or hub id of the BERT (default: a new one of the shape in `fresh`)."""
    adapter: AdapterSpec = field(default_factory=AdapterSpec)
    fresh: BertConfig = field(default_factory=BertConfig)
    """Shape of a joint encoder trained from scratch (`vocab_size` is its tokenizer's limit)."""
    captioner: CaptionerSpec = field(default_factory=CaptionerSpec)
    video: VideoSpec = field(default_factory=VideoSpec)
    max_text_length: int | None = None
    """[CLS] + caption + [SEP] (default: that of --init, or else 63, as published). More than the
    joint encoder has positions for, with an image's tokens and a [SEP], is refused."""
    text_recipe: TextRecipe | None = None
    """Captions of the joint encoder: "as_written" keeps casing and punctuation, "published" does
    not, see `EdjeConfig` (default: that of --init or of --teacher, or else published)."""
    dropout: float = 0.1
    deferred_layers: int | None = None
    """Layers of the joint encoder that run offline on the vision side, see `BertConfig` (default:
    as many as `fresh` or the model of `init` has; none of a language model of `joint_encoder`)."""
    online_vision: OnlineVision | None = None
    """Treatment of vision rows in the other layers, see `BertConfig` (default: as it is there)."""
    similarity_prior: bool | None = None
    """Whether the match head is given the first stage's cosine of a pair, as in VEDJE (default: as
    the model of `init` has it; a new one has none)."""
    icc_profile: IccProfile | None = None
    """Use of an image's colour profile, see `ImageRecipe` (default: the backbone's setting)."""
    transparency: Transparency | None = None
    """Treatment of transparent areas, see `ImageRecipe` (default: the backbone's setting)."""

    def __post_init__(self):
        at_least(3, {"--model.max-text-length": self.max_text_length}, or_none=True)
