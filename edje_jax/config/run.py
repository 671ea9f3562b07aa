"""Settings of a training run: data, devices, optimiser, losses, and the parts of the model.

Every run is one frozen dataclass, which tyro turns into a command line. A setting that is not
given is None.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from edje_jax.config.model import (
    IccProfile,
    Precision,
    TextConfig,
    Transparency,
    VisionConfig,
)
from edje_jax.config.parts import ModelSpec, at_least


@dataclass(frozen=True)
class DataConfig:
    """Sources of images and captions, and how they are batched."""

    train: str = "shapes:train"
    """SPEC of the training set, as `kind:path[#split]`, or several: SPEC@0.7+SPEC@0.3."""
    val: str | None = None
    """SPEC evaluated during training (default: none)."""
    image_root: str | None = None
    """Folder that relative image paths start from (default: the JSON's own)."""
    exclude: str | None = None
    """SPEC of images to remove from the training set, such as the test set's: those with the very
    same pixels are left out, whatever they are called."""
    limit: int | None = None
    """Images to train on, from the first of the set (default: all)."""
    captions: int | None = None
    """Captions of an image to train on, its first ones (default: all)."""
    crop: float = 1.0
    """Least area, about, of the random window of an image that is trained on (RandomResizedCrop),
    as a share; 1 takes images whole. All frames of a video have one window. Not for features that
    are kept or patches with labels."""
    batch_size: int = 64
    block_size: int = 1
    """Records that stay together in a shuffle: neighbours in the set are then each other's
    hard negatives. 1 shuffles every record on its own. Records beyond the last whole block come
    last in every epoch."""
    workers: int = 0
    """Processes that decode and tokenise; 0 uses threads of this process."""
    max_bad: float = 0.01
    """Share of the records that may turn out unreadable before a run stops with their list."""
    full_length: bool = False
    """Pad captions to the longest that the model reads: one program is compiled in place of one for
    each bucket of lengths, and short captions take as long as long ones."""
    cache_features: str | None = None
    """Folder that keeps the frozen backbone's features of the training set, for all epochs and for
    other runs: no image is decoded or encoded again. Made if it is not there."""

    def __post_init__(self):
        at_least(
            1,
            {
                "--data.batch-size": self.batch_size,
                "--data.block-size": self.block_size,
            },
        )
        at_least(1, {"--data.limit": self.limit, "--data.captions": self.captions}, or_none=True)
        at_least(0, {"--data.workers": self.workers, "--data.max-bad": self.max_bad})
        if not 0 < self.crop <= 1:
            raise ValueError(
                f"--data.crop {self.crop}: a share of the image's area, above 0 up to 1"
            )
        if self.crop < 1 and self.cache_features:
            raise ValueError(
                f"--data.crop {self.crop} draws other windows every epoch, and"
                f" --data.cache-features {self.cache_features} keeps whole images; leave one out"
            )


@dataclass(frozen=True)
class MeshConfig:
    """The devices of a run as a grid of data x fsdp."""

    data: int | None = None
    """Devices that hold copies of the parameters and each a share of the batch (default: all that
    `fsdp` leaves)."""
    fsdp: int = 1
    """Devices that share one copy of the parameters and of the optimiser's state."""

    def __post_init__(self):
        at_least(1, {"--mesh.fsdp": self.fsdp})
        at_least(1, {"--mesh.data": self.data}, or_none=True)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW or Muon with the published schedule (warm-up, then x0.9 per epoch), or a cosine."""

    kind: Literal["adamw", "muon"] = "adamw"
    """"muon": the kernels of dense layers follow Muon, the rest AdamW at the same rate
    (docs/guide/training.md)."""
    lr: float = 3e-4
    schedule: Literal["exponential", "cosine"] = "exponential"
    warmup_steps: int = 100
    warmup_from: float = 1e-6
    epoch_decay: float = 0.9
    hold: float = 0.0
    """Share of the steps that stay at the full rate before a cosine sets in."""
    floor: float = 1e-6
    weight_decay: float = 0.05
    b1: float = 0.9
    """With `b2`, the decay of AdamW's moments; Muon's momentum is 0.95."""
    b2: float = 0.999
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 leaves gradients as they are (published)."""
    lr_scales: tuple[str, ...] = ()
    """REGEX=FACTOR: the rate of parameters whose path the expression is found in, such as
    "joint_encoder/layers_[0-5]/=0.1"; the first that fits counts, and 0 freezes."""
    ema: float = 0.0
    """Decay of a running average of the parameters, such as 0.999, which is then evaluated and
    exported in their place; 0 keeps none."""


def weight_of_a_loss(default: float) -> Any:
    """The weight of a loss: the name of its field is the name of the loss's file in
    `training/losses/`."""
    return field(default=default, metadata={"is_weight": True})


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses, and what they are computed from. A weight of 0 skips the work too."""

    match: float = weight_of_a_loss(1.0)
    """Weight of the softmax of each pair against its negatives, as the published code has it. A
    captioner's scores go into it as they are, in nats: "pmi" and "sum" are sums over tokens and
    directions, and differ by several nats from candidate to candidate, as match logits do; "mean"
    is a token's share of them, which makes the softmax flatter by the caption's length."""
    binary_match: float = weight_of_a_loss(0.0)
    """Weight of classifying each pair on its own as a match or none, as the paper words it: logits
    of different queries become comparable, which calibration and `min_score` gain from."""
    distillation: float = weight_of_a_loss(1.0)
    """Weight of the distance to the match logits of a `teacher`, where one is named, pair by pair.
    A captioner's scores are none, and its calibration (`edje tune --save`) makes some of them."""
    listwise_distillation: float = weight_of_a_loss(0.0)
    """Weight of the distance between the softmax of a `teacher`'s scores and of this model's, where
    one is named, over each pair and its negative images, and over it and its negative captions:
    for teachers of any kind, as nothing but differences within a list count."""
    hidden_states: float = weight_of_a_loss(0.0)
    """Weight of the distance between the states of a caption's tokens and those of a `teacher` of
    the same width, where one is named, after the layers that both have online, counted from the
    last. Costs one more pass of each over the captions and their own images."""
    masked_lm: float = weight_of_a_loss(1.0)
    """Weight of predicting the hidden tokens of a caption beside its image."""
    text_recovery: float = weight_of_a_loss(1.0)
    """Weight of predicting the backbone's embedding of a caption from its text alone."""
    future_difference: float = weight_of_a_loss(0.0)
    """Weight of predicting, from the tokens of a video's frame, how the vision tokens change until
    a later one (VEDJE): the predictor is trained along and no part of the model."""
    captioning: float = weight_of_a_loss(0.0)
    """Weight of predicting a caption's tokens from its image, in the directions of a captioner."""
    unconditional_captioning: float = weight_of_a_loss(0.0)
    """Weight of predicting them without an image, which a captioner's score "pmi" needs."""
    negatives: int = 3
    """Hard negative images per caption, and hard negative captions per image: the most similar
    ones by the backbone."""
    hardest_of: int | None = None
    """Hard negatives are drawn at random among so many of the most similar (24 of 50 in VEDJE),
    which costs nothing; None takes the very most similar, as published."""
    random_negatives: int = 0
    """Further negatives of both kinds, drawn at random, as the published recipe has none: from hard
    negatives alone a model may learn less about what is easily told apart."""
    queue: int = 0
    """Images and captions of the last batches that negatives are chosen from too, their tokens as
    they were then; 0 takes negatives from the batch alone. Every device holds all of it, and
    checkpoints do: a row is as large as its compressed tokens in float32 (98 kB at 64 x 384)."""
    auxiliary_stride: int = 1
    """Masked LM, text recovery and captioning without an image train on every so-many-th row of a
    batch while matching is trained too: 2 takes half of their time. Alone they train on every
    row."""
    distillation_temperature: float = 1.0
    """Divisor of a teacher's scores before their softmax, in listwise distillation:
    `teacher_entropy` in the log tells what it leaves, from 0 to ln(1 + negatives) nats."""
    mask_probability: float = 0.5
    masked_lm_first: float = 0.0
    """Share of the steps, from the start, that train masked LM and text recovery alone, or a
    captioner's captioning."""

    def __post_init__(self):
        at_least(1, {"--loss.negatives": self.negatives})
        at_least(1, {"--loss.auxiliary-stride": self.auxiliary_stride})
        flags = {name: f"--loss.{name.replace('_', '-')}" for name in self.weights()}
        at_least(0, {flag: getattr(self, name) for name, flag in flags.items()})
        if not self.distillation_temperature > 0:
            raise ValueError(
                f"--loss.distillation-temperature {self.distillation_temperature}: must be above 0"
            )
        if self.hardest_of is not None:
            at_least(self.negatives, {"--loss.hardest-of": self.hardest_of})
        at_least(0, {"--loss.random-negatives": self.random_negatives, "--loss.queue": self.queue})

    @classmethod
    def weights(cls) -> tuple[str, ...]:
        """Names of the losses, in the order in which they are added up."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("is_weight"))

    @property
    def follows_scores(self) -> bool:
        """Whether a term needs a teacher's scores of pairs."""
        return self.distillation > 0 or self.listwise_distillation > 0

    @property
    def all_negatives(self) -> int:
        """Negatives of each kind per row, hard and random."""
        return self.negatives + self.random_negatives


@dataclass(frozen=True)
class RunConfig:
    """Options that every training run has."""

    task: ClassVar[str]
    """Name of the training task (`edje_jax.training.tasks.registry`)."""
    workdir: str | None = None
    """Folder of all files of the run (default: runs/ and the config's name)."""
    seed: int = 0
    steps: int | None = None
    """Optimiser steps (default: those of `epochs`)."""
    epochs: float = 1.0
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: Literal["off", "auto"] = "off"
    """"auto" joins the processes that TPU pods, Slurm or Open MPI started, or those that the three
    settings below describe, into one run."""
    coordinator: str | None = None
    """host:port of process 0, where no cluster tells."""
    num_processes: int | None = None
    process_id: int | None = None
    precision: Precision = "auto"
    """Compute dtype; "auto" is bfloat16 on GPU and TPU, float32 on CPU. Params stay float32."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    scan_layers: bool = False
    """Compile the layers of a tower once, as a loop, instead of one after the other: a smaller
    program, whose steps are slower on a CPU."""
    log_every: int = 10
    eval_every: int | None = None
    """Steps between evaluations on `data.val`, of which the best one's parameters are exported
    (default: a single evaluation at the end, and the last parameters are exported)."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    profile: bool = False
    """Trace steps 10 to 15 for TensorBoard and Perfetto, into profile/ of the workdir."""

    def __post_init__(self):
        at_least(1, {"--steps": self.steps, "--eval-every": self.eval_every}, or_none=True)
        at_least(1, {"--log-every": self.log_every, "--checkpoint-every": self.checkpoint_every})
        at_least(1, {"--keep-checkpoints": self.keep_checkpoints})
        at_least(1, {"--num-processes": self.num_processes}, or_none=True)
        at_least(0, {"--process-id": self.process_id}, or_none=True)


@dataclass(frozen=True)
class EdjeRun(RunConfig):
    """Train an EDJE or a captioner on a frozen backbone."""

    task: ClassVar[str] = "edje"
    model: ModelSpec = field(default_factory=ModelSpec)
    loss: LossConfig = field(default_factory=LossConfig)
    init: str | None = None
    """Model to start from (fine-tuning): folder, workdir or hub id."""
    teacher: str | None = None
    """Model to distil from: folder, workdir or hub id."""
    k: int = 10
    """Candidates reranked when the run evaluates."""
    accumulate: int = 1
    """Parts that a batch is worked through in, one after the other: the same negatives and
    gradients in less memory."""

    def __post_init__(self):
        super().__post_init__()
        at_least(1, {"--accumulate": self.accumulate})


@dataclass(frozen=True)
class BackboneRun(RunConfig):
    """Train a small dual encoder: a new one, as SigLIP's, or one that is there."""

    task: ClassVar[str] = "backbone"
    init: str | None = None
    """Dual encoder to start from: a Hugging Face SigLIP or CLIP folder or hub id, or the workdir of
    a run like this one. Shapes, tokenizer and image recipe are its own."""
    teacher: str | None = None
    """EDJE or captioner to distil from: folder, workdir or hub id. It must read images as the dual
    encoder."""
    distillation: float = 1.0
    """Weight of the distance to the scores of a `teacher`, where one is named, over lists of
    candidates: Fast & Slow, as reconstructed in `edje_jax.training.backbone_teacher`."""
    distillation_kind: Literal["softmax", "order"] = "softmax"
    """"softmax" is the cross-entropy of the teacher's softmax and the student's, "order" the
    likelihood of the teacher's order alone."""
    distillation_temperature: float = 1.0
    """Divisor of the teacher's scores; `teacher_entropy` in the log tells what it leaves."""
    distilled_candidates: int = 8
    """Other images of a caption's list, and other captions of an image's: the most similar of the
    batch by the dual encoder itself."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    """`vocab_size` is the limit of the tokenizer that is trained from the captions."""
    patch_naming: float = 0.0
    """Weight of the auxiliary loss that names what each patch holds, for sources that know, and
    where the patch stands."""
    patch_sharpness: tuple[float, ...] = (20.0,)
    """Largest logit of each attribute's naming, in the source's order, then of row and column; the
    last one goes for the rest. A name at less sharpness takes a larger share of the token, and the
    joint encoder learns large shares first."""
    icc_profile: IccProfile = "ignored"
    """Use of an image's colour profile (see `ImageRecipe`)."""
    transparency: Transparency = "dropped"
    """Treatment of transparent areas (see `ImageRecipe`)."""

    def __post_init__(self):
        super().__post_init__()
        at_least(0, {"--distillation": self.distillation})
        at_least(1, {"--distilled-candidates": self.distilled_candidates})
        if not self.distillation_temperature > 0:
            raise ValueError(
                f"--distillation-temperature {self.distillation_temperature}: must be above 0"
            )
