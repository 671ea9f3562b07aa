"""The train step of a dual encoder: pure, top-level, jitted by its task."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise
from edje_jax.models.towers import DualTower
from edje_jax.scenes.patch_naming import PatchNaming
from edje_jax.training.backbone_teacher import BackboneTeacher, TeacherParams, examples_of
from edje_jax.training.losses.sigmoid import sigmoid_loss
from edje_jax.training.losses.softmax import softmax_loss
from edje_jax.training.negatives import positive_pairs
from edje_jax.training.state import Metrics, TrainState, apply_gradients
from edje_jax.types import Batch, Frames


@dataclass(frozen=True)
class BackboneStepSetup:
    """Everything that is the same at each step of a run."""

    model: DualTower
    recipe: ImageRecipe
    optimiser: optax.GradientTransformation
    naming: PatchNaming | None = None
    teacher: BackboneTeacher | None = None
    ema: float = 0.0
    """Decay of the running average of the parameters; 0 keeps none."""


def backbone_train_step(
    state: TrainState, taught_by: TeacherParams | None, batch: Batch, *, setup: BackboneStepSetup
) -> tuple[TrainState, Metrics]:
    """Train a dual encoder for one step.

    The loss is that of its family, sigmoid where there is a bias and else softmax, plus patch
    naming and distillation, if the run has them.
    """
    assert batch.images is not None and not isinstance(batch.images, Frames)
    pixels = normalise(batch.images, setup.recipe)
    kind, naming, teacher = setup.model.config.kind, setup.naming, setup.teacher

    def loss_fn(params):
        towers = params[kind]
        image = setup.model.bind({"params": towers}).encode_image(pixels)
        text = setup.model.bind({"params": towers}).encode_text(batch.backbone_ids)
        logits = text @ image.embedding.T * jnp.exp(towers["logit_scale"]).reshape(1, 1)
        positive = positive_pairs(batch, batch)
        if "logit_bias" in towers:
            logits = logits + towers["logit_bias"][None]
            name, loss = "sigmoid", sigmoid_loss(logits, positive, batch.valid)
        else:
            name, loss = "softmax", softmax_loss(logits, positive, batch.valid)
        metrics = {f"loss/{name}": loss}
        if naming:
            heads, labels = params["patch_naming"], batch.extra_labels
            assert labels is not None
            metrics["loss/patch_naming"] = naming.loss(heads, image.tokens, labels, batch.valid)
            loss = loss + naming.weight * metrics["loss/patch_naming"]
        if teacher and taught_by:
            rows = examples_of(batch, text, image.embedding, teacher.devices)
            distillation, told = teacher.loss(taught_by, batch, logits, rows)
            metrics |= told
            loss = loss + teacher.run.distillation * distillation
        return loss, {"loss": loss, **metrics}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    return apply_gradients(state, gradients, setup.optimiser, setup.ema), metrics
