"""Teachers of an EDJE or a captioner: refused where they do not fit, and calibrated."""

import dataclasses
from pathlib import Path

from edje_jax.config.calibration import Calibration
from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import EdjeRun
from edje_jax.data.tokenizer import same_tokenizer
from edje_jax.weights.backbone import Backbone
from edje_jax.weights.folder import Model


def check_vision(config: EdjeRun, teacher: Model, backbone: Backbone) -> None:
    """Refuse a teacher that cannot read the vision tokens of this run's backbone.

    Earlier layers beside them may be more or fewer: the backbone runs once, with the longer list,
    and each model reads its own part (`with_layers_of_both`).

    Raises:
        ValueError: the message names the option.
    """
    theirs, ours = teacher.backbone.config, backbone.config
    both = zip(theirs.earlier_layers, ours.earlier_layers, strict=False)
    if (theirs.token_layer, theirs.class_token) != (ours.token_layer, ours.class_token) or any(
        one != other for one, other in both
    ):
        raise ValueError(
            f"--teacher {config.teacher}: reads other vision tokens of the backbone than this run;"
            " set --model.token-layer and --model.class-token as its run did"
        )
    if not teacher.backbone.shares_params_of(backbone):
        raise ValueError(
            f"--teacher {config.teacher}: its backbone is another than this run's. Both read the"
            " same vision tokens, so train the teacher on this backbone or leave --model.backbone"
            " out to use the teacher's"
        )


def check_frames(config: EdjeRun, teacher: Model, whole: EdjeConfig) -> None:
    """Refuse a teacher that reads other frames than this run, as the backbone runs once for both.

    Raises:
        ValueError: the message names the option.
    """
    theirs, ours = teacher.config.video, whole.video
    if (theirs and theirs.sampling) == (ours and ours.sampling):
        return
    told = [f"{each.sampling.words}, of a video" if each else "images" for each in (theirs, ours)]
    raise ValueError(
        f"--teacher {config.teacher}: reads {told[0]}, and this run {told[1]}; set the options of"
        " --model.video as its run did"
    )


def check_scores(config: EdjeRun, teacher: Model) -> None:
    """Refuse a teacher whose scores or states are not what the losses of a run follow.

    Raises:
        ValueError: the message names the loss and the remedy.
    """
    loss, name = config.loss, f"--teacher {config.teacher}"
    if not teacher.config.captioner:
        return
    if loss.hidden_states > 0:
        raise ValueError(
            f"{name}: a captioner, whose states no joint encoder can follow; set"
            " --loss.hidden-states to 0"
        )
    if not loss.distillation > 0:
        return
    if not teacher.calibration.is_fitted:
        raise ValueError(
            f"{name}: a captioner, whose scores are no match logits: fit its calibration with edje"
            f" tune {config.teacher} --data SPEC --save, or set --loss.distillation 0"
            " --loss.listwise-distillation 1"
        )
    if teacher.calibration.similarity_weight and teacher.config.first_stage:
        raise ValueError(
            f"{name}: its calibration mixes in cosines of its first-stage heads, which a run does"
            " not compute; set --loss.distillation 0 --loss.listwise-distillation 1"
        )


def check_texts(config: EdjeRun, teacher: Model, whole: EdjeConfig, tokenizer: Path) -> None:
    """Refuse a teacher that reads other captions, or whose hidden states cannot be followed.

    Raises:
        ValueError: the message names the option.
    """
    theirs, ours = teacher.config.joint_encoder.hidden_size, whole.joint_encoder.hidden_size
    if config.loss.hidden_states > 0 and theirs != ours:
        raise ValueError(
            f"--loss.hidden-states {config.loss.hidden_states}: the teacher's states are"
            f" {theirs} wide and this run's {ours}; set it to 0 to distil logits"
        )
    if teacher.config.text_recipe != whole.text_recipe:
        raise ValueError(
            f"--teacher {config.teacher}: reads captions of the text recipe"
            f" {teacher.config.text_recipe}, and this run {whole.text_recipe}; set"
            f" --model.text-recipe {teacher.config.text_recipe}"
        )
    longest = dataclasses.replace(teacher.config, max_text_length=whole.max_text_length)
    longest.check_positions(f"--teacher {config.teacher}")
    if not same_tokenizer(teacher.tokenizer, tokenizer):
        raise ValueError(
            f"--teacher {config.teacher}: its tokenizer is another than this run's, so the two"
            " cannot read the same captions; leave --model.joint-encoder out to use the teacher's"
        )


def calibration_of(teacher: Model | None) -> Calibration | None:
    """Calibration that makes match logits of a teacher's scores; None where they are such, as an
    EDJE's."""
    return teacher.calibration if teacher and teacher.config.captioner else None


def with_layers_of_both(backbone: Backbone, teacher: Model | None) -> Backbone:
    """Backbone whose vision tokens hold what a model and its teacher read: the part of the one that
    reads fewer earlier layers is the beginning of the other's."""
    if teacher is None:
        return backbone
    lists = backbone.config.earlier_layers, teacher.backbone.config.earlier_layers
    config = dataclasses.replace(backbone.config, earlier_layers=max(lists, key=len))
    return dataclasses.replace(backbone, config=config)
