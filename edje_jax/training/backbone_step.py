"""The train step of a dual encoder: pure, top-level, jitted by its task."""

import jax
import jax.numpy as jnp
import optax

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise
from edje_jax.models.siglip import Siglip
from edje_jax.scenes.patch_naming import PatchNaming
from edje_jax.training.losses.sigmoid import sigmoid_loss
from edje_jax.training.negatives import positive_pairs
from edje_jax.training.state import Metrics, TrainState, apply_gradients
from edje_jax.types import Batch


def backbone_train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Siglip,
    naming: PatchNaming | None,
    recipe: ImageRecipe,
    optimiser: optax.GradientTransformation,
    ema: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Train a dual encoder for one step: sigmoid loss plus the auxiliary one, if there is one."""
    assert batch.images is not None
    pixels = normalise(batch.images, recipe)

    def loss_fn(params):
        siglip = params["siglip"]
        image = model.bind({"params": siglip}).encode_image(pixels)
        text = model.bind({"params": siglip}).encode_text(batch.backbone_ids)
        scale, bias = jnp.exp(siglip["logit_scale"]), siglip["logit_bias"]
        logits = text @ image.embedding.T * scale[None] + bias[None]
        positive = positive_pairs(batch, batch)
        metrics = {"loss/sigmoid": sigmoid_loss(logits, positive, batch.valid)}
        loss = metrics["loss/sigmoid"]
        if naming:
            heads, labels = params["patch_naming"], batch.extra_labels
            assert labels is not None
            metrics["loss/patch_naming"] = naming.loss(heads, image.tokens, labels, batch.valid)
            loss = loss + naming.weight * metrics["loss/patch_naming"]
        return loss, {"loss": loss, **metrics}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    return apply_gradients(state, gradients, optimiser, ema), metrics
