"""Shapes of every part of a model: frozen dataclasses with primitive leaves.

Field names follow Hugging Face's `config.json` wherever the field exists there, so that reading
one is a matter of picking keys. Nothing here imports JAX: a config is cheap to read anywhere.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.first_stage import FirstStageConfig
from edje_jax.config.frames import VideoConfig

Activation = Literal["gelu", "gelu_pytorch_tanh", "quick_gelu"]


Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of training."""


InferencePrecision = Literal["auto", "float32", "bfloat16", "int8"]
"""Precision of scoring and encoding."""


RuntimeName = Literal["jax", "onnx"]
"""Runtime that scores pairs: JAX, or ONNX Runtime on CPUs (`edje_jax.runtimes`)."""


ModelKind = Literal["edje", "captioner"]
"""Kinds of models that score pairs: a joint encoder, or a captioner (`models.scorers`)."""


Upsampling = Literal[1, 2, 4]
"""Factor of the side of a grid of vision tokens."""


OnlineVision = Literal["updated", "attended"]


IccProfile = Literal["ignored", "applied"]


Transparency = Literal["dropped", "white"]


READING = {"icc_profile": get_args(IccProfile), "transparency": get_args(Transparency)}
"""Fields of a recipe that say how image files are read -> their values; the first value is that of
the Hugging Face processors."""


TextRecipe = Literal["published", "as_written"]
"""Captions as the joint encoder's tokenizer gets them (`data.text.RECIPES`)."""


TokenDtype = Literal["bfloat16", "float16", "int8", "int4"]
"""Data type in which compressed tokens are stored (`models.token_formats`)."""


EmbeddingDtype = Literal["float32", "float16", "int8"]
"""Data type in which an index stores embeddings (`index.embeddings`)."""


@dataclass(frozen=True)
class ImageRecipe:
    """How an image becomes pixels, as `preprocessor_config.json` states it.

    `resize`: "warp" to a square (SigLIP), or "crop": short side to `size`, then the centre (CLIP).
    """

    size: int = 64
    resize: Literal["warp", "crop"] = "warp"
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    icc_profile: IccProfile = "ignored"
    """"ignored" takes colours as the file has them, as the Hugging Face processors do; "applied"
    converts them to sRGB by the embedded profile."""
    transparency: Transparency = "dropped"
    """"dropped" shows the colours beneath, as the Hugging Face processors do; "white" puts the
    image on white."""

    def __post_init__(self):
        for name, choices in READING.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f'{name} "{value}": {" or ".join(choices)}')

    @property
    def reading(self) -> dict[str, str]:
        """Values of `icc_profile` and `transparency` that differ from the Hugging Face processors'.

        Empty for recipes that are older than these fields.
        """
        told = {name: getattr(self, name) for name in READING}
        return {name: value for name, value in told.items() if value != READING[name][0]}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields; the last two only if they differ from the Hugging Face processors'."""
        rest = {name: value for name, value in to_dict(self).items() if name not in READING}
        return rest | self.reading


@dataclass(frozen=True)
class VisionConfig:
    """A ViT; the defaults are a tiny SigLIP's."""

    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    image_size: int = 64
    patch_size: int = 8
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """A text tower; `projection_size` is the width of the shared embedding."""

    vocab_size: int = 32000
    hidden_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 64
    projection_size: int = 128
    pad_token_id: int = 1
    mask_padding: bool = False
    """Whether padding is hidden from attention. SigLIP was trained without a mask; a folder whose
    tokenizer hands out attention masks is used with one (see
    `weights.families.siglip.read_config`). A causal tower, as CLIP's, never sees any."""
    eos_token_id: int = 2
    """The end token, whose row CLIP pools; SigLIP pools the last position."""
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclass(frozen=True)
class BackboneConfig:
    """A frozen dual encoder, which gives the vision tokens and the first-stage embeddings."""

    kind: str = "siglip"
    """Name of the family (`weights.families.registry`)."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    token_layer: int = -1
    """Layer whose output the vision tokens are, counted from the end: -1 is the last."""
    class_token: bool = False
    """Whether the class token, of a family that has one, is one of the vision tokens."""
    earlier_layers: tuple[int, ...] = ()
    """Further layers, counted from the end, whose outputs stand beside those of `token_layer` in
    every vision token (`models.upsampling` reads them)."""

    def __post_init__(self):
        object.__setattr__(self, "earlier_layers", tuple(self.earlier_layers))

    @property
    def token_width(self) -> int:
        """Width of a vision token."""
        return self.vision.hidden_size * (1 + len(self.earlier_layers))

    def layers_for(self, upsampling: int) -> tuple[int, ...]:
        """Earlier layers that an upsampling by this factor reads: the output of the layer two
        thirds of the way up to `token_layer` for its first step, and one third for its second."""
        end = self.vision.num_hidden_layers + 1
        depth = end + self.token_layer
        ups = [round(depth * (2 - step) / 3) for step in range(upsampling.bit_length() - 1)]
        return tuple(up - end for up in ups)

    @property
    def num_vision_tokens(self) -> int:
        """Vision tokens per image: what the adapter reads."""
        return self.vision.num_patches + self.class_token


@dataclass(frozen=True)
class BertConfig:
    """A BERT encoder. `vocab_size` counts the image placeholder's row where there is one."""

    vocab_size: int = 30523
    hidden_size: int = 384
    intermediate_size: int = 1536
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    """Deviation of fresh weights. BERT's is meant for widths near 768; configs of small ones
    trained from scratch take about 0.02 * sqrt(768 / width) (docs/ablation.md)."""
    deferred_layers: int = 0
    """Layers, from the first, in which vision and text attend within their own side alone, so that
    each side's are computed once per image and once per caption; 0 is the published model."""
    online_vision: OnlineVision = "updated"
    """Treatment of vision rows in the later layers: "updated" too (published), or unchanged and
    "attended" to by the text."""

    def __post_init__(self):
        most = self.num_hidden_layers - 1
        if not 0 <= self.deferred_layers <= most:
            raise ValueError(
                f"deferred_layers {self.deferred_layers}: of {self.num_hidden_layers} layers 0 to"
                f" {most} can be, as the last one must see both sides"
            )
        if self.online_vision not in get_args(OnlineVision):
            known = " or ".join(get_args(OnlineVision))
            raise ValueError(f'online_vision "{self.online_vision}": {known}')

    @property
    def online_layers(self) -> int:
        """Layers that see both sides."""
        return self.num_hidden_layers - self.deferred_layers

    @property
    def is_published_layout(self) -> bool:
        """Whether code that knows neither deferred layers nor attended vision does the same."""
        return self.deferred_layers == 0 and self.online_vision == "updated"


@dataclass(frozen=True)
class AdapterConfig:
    """`local`: one vector per patch, no compression. `compress`: `num_tokens` learned queries."""

    kind: Literal["local", "compress"] = "compress"
    num_tokens: int = 64
    intermediate_size: int = 8192
    upsampling: Upsampling = 1
    """Factor of the side of the grid that the adapter reads (`models.upsampling`); 1 leaves the
    backbone's, as published."""

    def __post_init__(self):
        if self.upsampling not in get_args(Upsampling):
            known = ", ".join(map(str, get_args(Upsampling)))
            raise ValueError(f"upsampling {self.upsampling}: {known}")


@dataclass(frozen=True)
class SimilarityPrior:
    """Learned prior: the first stage's cosine is an input of the match head, standardised by the
    mean and deviation that it has over the pairs of a training batch."""

    mean: float = 0.0
    deviation: float = 1.0

    def __post_init__(self):
        if not self.deviation > 0:
            raise ValueError(f"similarity_prior: deviation {self.deviation} is not above 0")


UNMEASURED = SimilarityPrior()
"""Similarity prior of a run that has not measured mean and deviation yet."""

JOINT_HEADS = {"similarity_prior": SimilarityPrior}
"""Settings of the heads on the joint encoder that a published checkpoint does not have, by their
names: a field of `EdjeConfig`, the head's parameters, and its file of a model folder."""


@dataclass(frozen=True)
class EdjeConfig:
    """The whole model: backbone -> adapter -> joint encoder."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    joint_encoder: BertConfig = field(default_factory=BertConfig)
    image: ImageRecipe = field(default_factory=ImageRecipe)
    max_text_length: int = 63
    """[CLS] + caption + [SEP]; the [SEP] that closes the vision segment makes it 64."""
    similarity_prior: SimilarityPrior | None = None
    """None for a match head that does not know the first stage's cosine, as published."""
    first_stage: FirstStageConfig | None = None
    """None for a first stage that takes the backbone's embeddings as they are, as published."""
    text_recipe: TextRecipe = "published"
    """Captions of the joint encoder: "published" ones have no punctuation and are in lower case,
    "as_written" keeps both. The backbone gets published ones always."""

    captioner: CaptionerConfig | None = None
    """None for a joint encoder, as published; else `joint_encoder` is the shape of its decoders."""
    video: VideoConfig | None = None
    """None for a model of images, as published; else the adapter compresses frame by frame, with
    the same weights, and `adapter.num_tokens` are those of a frame."""

    def __post_init__(self):
        if self.text_recipe not in get_args(TextRecipe):
            known = " or ".join(get_args(TextRecipe))
            raise ValueError(f'text_recipe "{self.text_recipe}": {known}')
        if self.adapter.upsampling > 1 and self.backbone.class_token:
            raise ValueError(
                f"upsampling {self.adapter.upsampling}: a class token has no place in a grid;"
                " leave class_token out"
            )
        if not self.captioner:
            return
        if self.similarity_prior:
            raise ValueError("a captioner has no match head for a similarity prior; leave it out")
        if not self.joint_encoder.is_published_layout:
            raise ValueError(
                "a captioner has no deferred layers and leaves vision rows as they are; set"
                " deferred_layers to 0 and online_vision to updated"
            )

    @property
    def kind(self) -> ModelKind:
        """Kind of the model that scores pairs."""
        return "captioner" if self.captioner else "edje"

    @property
    def encodes_captions(self) -> bool:
        """Whether a part of a pair's score depends on the caption alone, and is computed once for
        all images that it meets."""
        if self.captioner:
            return self.captioner.score == "pmi"
        return self.joint_encoder.deferred_layers > 0

    @property
    def joint_heads(self) -> dict[str, Any]:
        """Settings of those of `JOINT_HEADS` that the model has."""
        settings = {name: getattr(self, name) for name in JOINT_HEADS}
        return {name: one for name, one in settings.items() if one is not None}

    @property
    def code_lengths(self) -> tuple[int, ...]:
        """Lengths in bits of the model's codes; () for a model without."""
        return self.first_stage.code_lengths if self.first_stage else ()

    @property
    def tokens_per_frame(self) -> int:
        """Compressed tokens of an image, or of a frame of a video."""
        if self.adapter.kind == "local":
            return self.backbone.num_vision_tokens * self.adapter.upsampling**2
        return self.adapter.num_tokens

    @property
    def frames(self) -> int:
        """Most frames of a video that are read; 1 of a model of images."""
        return self.video.sampling.frames if self.video else 1

    @property
    def may_miss_frames(self) -> bool:
        """Whether rows of the store may be of frames that are not there (`models.frames`)."""
        return self.video is not None and self.video.pooling == "none" and self.frames > 1

    @property
    def num_tokens(self) -> int:
        """Compressed tokens of an image or a video, frame by frame: the store keeps a row for
        each."""
        pooled = self.video is not None and self.video.pooling == "mean"
        return self.tokens_per_frame * (1 if pooled else self.frames)

    @property
    def vision_shape(self) -> tuple[int, ...]:
        """Shape of the backbone's tokens of an image, or of a video: [(frames), tokens, width]."""
        of_frame = self.backbone.num_vision_tokens, self.backbone.token_width
        return (self.frames, *of_frame) if self.video else of_frame

    @property
    def num_positions(self) -> int:
        """Positions of the longest caption, with an image's tokens and the [SEP] behind them where
        a joint encoder reads both."""
        if self.captioner:
            return self.max_text_length
        return self.max_text_length + self.num_tokens + 1

    def check_positions(self, source: str) -> None:
        """Refuse captions longer than published ones for which the joint encoder has no rows of
        positions. A published length may have many vision tokens, which share the last row.

        Raises:
            ValueError: rows are missing; `source` is what the message begins with.
        """
        rows, published = self.joint_encoder.max_position_embeddings, EdjeConfig.max_text_length
        if self.captioner and self.max_text_length > rows:
            raise ValueError(
                f"{source}: max_text_length {self.max_text_length}: the decoders have {rows}"
                f" positions; set max_text_length to {rows}"
            )
        if self.max_text_length <= published or rows >= self.num_positions:
            return
        raise ValueError(
            f"{source}: max_text_length {self.max_text_length}, {self.num_tokens} tokens of an"
            f" image and a [SEP] take {self.num_positions} positions, and the joint encoder has"
            f" {rows}; set max_text_length to {max(rows - self.num_tokens - 1, published)}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON-ready nested dicts."""
    return dataclasses.asdict(config)
