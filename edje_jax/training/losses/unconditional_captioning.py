"""Captioning without an image: what a caption's score is compared with ("pmi")."""

from jaxtyping import Array, Float

from edje_jax.config.model import EdjeConfig
from edje_jax.config.run import LossConfig
from edje_jax.training import flops
from edje_jax.training.losses.captioning import captioning_loss
from edje_jax.training.losses.term import RowContext, Term


def _loss(context: RowContext) -> Float[Array, ""]:
    rows, _ = context.auxiliary
    found = context.bound().log_probabilities(rows.ids, None, context.training)
    return captioning_loss(found, rows.valid, context.counts.auxiliary_predicted)


def _flops(config: EdjeConfig, loss: LossConfig) -> float:
    return flops.encode_text(config) / loss.auxiliary_stride


TERM = Term(_loss, _flops, comes_first=True, kinds=("captioner",))
