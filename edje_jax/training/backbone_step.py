"""The train step of a dual encoder: pure, top-level, jitted by its task."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from edje_jax.config.model import ImageRecipe
from edje_jax.data.images import normalise
from edje_jax.models.siglip import Siglip
from edje_jax.training.losses.patch_naming import naming_loss
from edje_jax.training.losses.sigmoid import sigmoid_loss
from edje_jax.training.negatives import positive_pairs
from edje_jax.training.state import Metrics, TrainState, apply_gradients
from edje_jax.types import Batch


def backbone_train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Siglip,
    heads: dict[str, Any],
    weights: dict[str, float],
    recipe: ImageRecipe,
    optimiser: optax.GradientTransformation,
    ema: float = 0.0,
) -> tuple[TrainState, Metrics]:
    """Train a dual encoder for one step: sigmoid loss plus the auxiliary ones.

    `heads` are the Linen modules of the auxiliary losses; `weights` their weights by name.
    """

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
        if batch.patch_labels is not None:
            named = heads["patch_naming"].bind({"params": params["patch_naming"]})(image.tokens)
            labels = with_places(batch.patch_labels)
            losses = [
                naming_loss(logits, labels[..., column], batch.valid)
                for column, logits in enumerate(named)
            ]
            metrics["loss/patch_naming"] = jnp.mean(jnp.stack(losses))
        loss = sum(weights[name.removeprefix("loss/")] * value for name, value in metrics.items())
        return loss, {"loss": loss, **metrics}

    gradients, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    metrics["grad_norm"] = optax.tree.norm(gradients)
    return apply_gradients(state, gradients, optimiser, ema), metrics


def with_places(labels: Int[Array, "b n a"]) -> Int[Array, "b n c"]:
    """Patch labels with each patch's row and column in a square grid as two columns more.

    The first of either is 0, as background is elsewhere: little stands at the edge.
    """
    rows, patches, _ = labels.shape
    side = round(patches**0.5)
    row, column = jnp.divmod(jnp.arange(patches, dtype=labels.dtype), side)
    places = jnp.broadcast_to(jnp.stack([row, column], axis=-1)[None], (rows, patches, 2))
    return jnp.concatenate([labels, places], axis=-1)
