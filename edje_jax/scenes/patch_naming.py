"""Auxiliary task of a backbone trained on the built-in scenes: name what each patch holds.

Where patches are embedded linearly, the contrastive loss alone learns colour and size, but neither
shape nor place: a bag of words needs neither. Linear heads on the vision tokens therefore name the
attributes of each patch's object, and where the patch stands; they are dropped after training.
"""

import logging
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from edje_jax.config.run import BackboneRun
from edje_jax.models.towers import unit_length
from edje_jax.scenes.shapes import LABEL_SIZES, Shapes
from edje_jax.types import PartOfSource, Source

log = logging.getLogger(__name__)


def patch_naming(source: Source, config: BackboneRun) -> "PatchNaming | None":
    """The auxiliary task of a run; None if its weight is 0 or the source is no scenes.

    Raises:
        ValueError: images are cropped, so that labels would be of other patches.
    """
    if config.patch_naming <= 0:
        return None
    if not _are_scenes(source):
        log.info("%s cannot say what patches hold: no patch naming", config.data.train)
        return None
    if config.data.crop < 1:
        raise ValueError(
            f"--data.crop {config.data.crop}: the labels of patches are of whole images;"
            " set it to 1, or --patch-naming to 0"
        )
    grid = config.vision.image_size // config.vision.patch_size
    return PatchNaming(source, grid, config.patch_naming, config.patch_sharpness)


@dataclass(frozen=True)
class PatchNaming:
    """Labels, heads and loss of patch naming on a grid x grid of patches."""

    source: Source
    grid: int
    weight: float
    """Weight of the loss."""
    sharpness: tuple[float, ...]
    """See `PatchHeads`."""

    def labels(self, record: int) -> Int[np.ndarray, "n 4"]:
        """Labels of the n = grid * grid patches of an image: see `Shapes.patch_labels`."""
        source = self.source
        while isinstance(source, PartOfSource):
            source, record = source.source, source.record(record)
        assert isinstance(source, Shapes)
        return source.patch_labels(record, self.grid)

    def init(self, key: jax.Array, width: int) -> PyTree[jax.Array]:
        """Fresh parameters of the heads for vision tokens of a width."""
        return self._heads.init(key, jnp.zeros((1, self.grid**2, width)))["params"]

    def loss(
        self,
        params: PyTree[jax.Array],
        tokens: Float[Array, "b n w"],
        labels: Int[Array, "b n 4"],
        valid: Bool[Array, " b"],
    ) -> Float[Array, ""]:
        """Mean over the attributes of the cross-entropy of what each patch holds."""
        named = self._heads.bind({"params": params})(tokens)
        labels = with_places(labels)
        losses = [naming_loss(x, labels[..., i], valid) for i, x in enumerate(named)]
        return jnp.mean(jnp.stack(losses))

    @property
    def _heads(self) -> "PatchHeads":
        return PatchHeads((*LABEL_SIZES, self.grid, self.grid), self.sharpness)


class PatchHeads(nn.Module):
    """Linear heads that name what a patch holds and where it stands.

    Logits are cosines times `sharpness`, so that a head cannot amplify a faint trace: what is named
    must fill a good part of the token, the larger the less sharp, where an adapter and a joint
    encoder find it as easily.
    """

    sizes: tuple[int, ...]
    """Number of names of each attribute."""
    sharpness: tuple[float, ...]
    """Largest logit of each attribute; the last one holds for the rest."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> list[jax.Array]:
        tokens, logits = unit_length(tokens), []
        for i, size in enumerate(self.sizes):
            init = nn.initializers.normal(1.0)
            names = self.param(f"attribute_{i}", init, (size, tokens.shape[-1]))
            sharpness = self.sharpness[min(i, len(self.sharpness) - 1)]
            logits.append(sharpness * tokens @ unit_length(names).T)
        return logits


def naming_loss(
    logits: Float[Array, "b n c"], labels: Int[Array, "b n"], valid: Bool[Array, " b"]
) -> Float[Array, ""]:
    """Cross-entropy of what each patch holds. Background (label 0) counts a tenth."""
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[..., None], axis=2)[..., 0]
    weights = jnp.where(labels > 0, 1.0, 0.1) * valid[:, None].astype(jnp.float32)
    return -jnp.sum(picked * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def with_places(labels: Int[Array, "b n a"]) -> Int[Array, "b n c"]:
    """Patch labels with each patch's row and column in a square grid as two columns more.

    The first row and the first column are 0, as background is elsewhere: little stands at the edge.
    """
    rows, patches, _ = labels.shape
    side = round(patches**0.5)
    row, column = jnp.divmod(jnp.arange(patches, dtype=labels.dtype), side)
    places = jnp.broadcast_to(jnp.stack([row, column], axis=-1)[None], (rows, patches, 2))
    return jnp.concatenate([labels, places], axis=-1)


def _are_scenes(source: Source) -> bool:
    """Whether a source is the built-in scenes, or some of them."""
    while isinstance(source, PartOfSource):
        source = source.source
    return isinstance(source, Shapes)
