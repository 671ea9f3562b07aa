"""Settings of a run that trains the heads of the first stage."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

from edje_jax.config.first_stage import CODE_LENGTHS, FirstStageConfig
from edje_jax.config.parts import at_least
from edje_jax.config.run import RunConfig, weight_of_a_loss

TEMPERATURE, TEMPERATURE_OF_SEVERAL = 4.0, 0.5
"""Temperatures of one teacher's scores, and of those of several, where a run names none."""


@dataclass(frozen=True)
class HeadsSpec:
    """Heads of the run."""

    code_lengths: tuple[int, ...] = CODE_LENGTHS
    """Lengths of the codes in bits, multiples of 8; a shorter code is the beginning of a longer
    one. None at all trains no codes."""
    hidden_size: int = 0
    """Width of a hidden layer in the heads; 0 has none."""
    reads_tokens: bool = False
    """Whether the heads of images also read the mean of an image's compressed tokens."""

    def resolve(self) -> FirstStageConfig:
        """Shape of the heads.

        Raises:
            ValueError: a length is no multiple of 8, or they do not rise.
        """
        try:
            return FirstStageConfig(tuple(self.code_lengths), self.hidden_size, self.reads_tokens)
        except ValueError as error:
            raise ValueError(f"--heads.{str(error).replace('_', '-', 1)}") from None


@dataclass(frozen=True)
class FirstStageLoss:
    """Weights of the losses; a weight of 0 skips the work too. Each is the mean of both
    directions, those of codes the mean over all lengths."""

    contrastive: float = weight_of_a_loss(0.2)
    """Weight of telling a batch's own pairs from all others by embeddings (InfoNCE)."""
    distillation: float = weight_of_a_loss(1.0)
    """Weight of following the teacher's scores of a query's candidates by embeddings (Fast &
    Slow, as we reconstruct it)."""
    order: float = weight_of_a_loss(0.0)
    """Weight of following the order alone of the teacher's scores."""
    code_contrastive: float = weight_of_a_loss(0.2)
    """Weight of the contrastive loss by codes on both sides."""
    code_query: float = weight_of_a_loss(0.5)
    """Weight of the contrastive loss of a query's projection against codes, which makes rescoring
    by it possible."""
    code_cosine: float = weight_of_a_loss(3.0)
    """Weight of following, by codes, the backbone's cosines within a batch."""
    code_distillation: float = weight_of_a_loss(0.0)
    """Weight of following the teacher's scores of a query's candidates by codes."""
    temperature: float | None = None
    """Divisor of the teacher's scores before their softmax: a higher one flattens what is too
    peaked. By default 4 for one teacher, and 0.5 for several, whose averaged scores have a standard
    deviation of at most 1."""
    cosine_temperature: float = 0.05
    """Divisor of the backbone's cosines before their softmax."""
    teacher_stride: int = 8
    """The terms with a teacher take every so-many-th row of a batch."""

    def __post_init__(self):
        flags = {name: f"--loss.{name.replace('_', '-')}" for name in self.weights()}
        at_least(0, {flag: getattr(self, name) for name, flag in flags.items()})
        at_least(1, {"--loss.teacher-stride": self.teacher_stride})
        for name in ("temperature", "cosine_temperature"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"--loss.{name.replace('_', '-')} {value}: give more than 0")

    @classmethod
    def weights(cls) -> tuple[str, ...]:
        """Names of the losses, in the order in which they are added up."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("is_weight"))

    @property
    def follows_teacher(self) -> bool:
        """Whether a term needs a teacher's scores."""
        return self.distillation > 0 or self.order > 0 or self.code_distillation > 0

    def with_temperature(self, teachers: int) -> "FirstStageLoss":
        """Losses of a run with so many teachers: their temperature is the default if none is
        given."""
        default = TEMPERATURE_OF_SEVERAL if teachers > 1 else TEMPERATURE
        return dataclasses.replace(self, temperature=self.temperature or default)


@dataclass(frozen=True)
class FirstStageRun(RunConfig):
    """Train heads of the first stage on a model, from a teacher's scores."""

    task: ClassVar[str] = "first_stage"
    init: str | None = None
    """Model to train heads for: folder, workdir or hub id. It is exported with them; all else of it
    stays as it is."""
    teacher: tuple[str, ...] = ()
    """Models whose scores the heads learn from, EDJEs or captioners (default: the model of --init).
    Of several, each one's scores are brought to mean 0 and variance 1 within a list of candidates,
    and then averaged."""
    index: str | None = None
    """Index of the training set by the model of --init, made if it is not there, which other runs
    can share (default: index/ in the workdir)."""
    heads: HeadsSpec = field(default_factory=HeadsSpec)
    loss: FirstStageLoss = field(default_factory=FirstStageLoss)
    candidates: int = 16
    """Nearest images of each caption, and captions of each image, that the teacher scores."""

    def __post_init__(self):
        super().__post_init__()
        at_least(2, {"--candidates": self.candidates})
