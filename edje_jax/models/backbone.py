"""The dual encoder that a config names."""

import jax
import jax.numpy as jnp

from edje_jax.config.model import BackboneConfig
from edje_jax.models.clip import Clip
from edje_jax.models.siglip import Siglip

DualTower = Siglip | Clip
"""Any of them: `encode_image`, `encode_text`, and logits of all pairs when called."""


def make_backbone(
    config: BackboneConfig, dtype: jax.typing.DTypeLike = jnp.float32, remat: bool = False
) -> DualTower:
    """The module of a backbone, as a pure function of its parameters."""
    kinds: dict[str, type[DualTower]] = {"siglip": Siglip, "clip": Clip}
    return kinds[config.kind](config, dtype, remat)
