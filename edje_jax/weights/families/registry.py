"""Families of backbones by the `model_type` of their config.json."""

import jax
import jax.numpy as jnp

from edje_jax.config.model import BackboneConfig
from edje_jax.models.towers import DualTower
from edje_jax.weights.families.base import Family
from edje_jax.weights.families.clip import CLIP
from edje_jax.weights.families.siglip import SIGLIP

FAMILIES: dict[str, Family] = {family.kind: family for family in (SIGLIP, CLIP)}


def make_backbone(
    config: BackboneConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> DualTower:
    """The module of a backbone, as a pure function of its parameters."""
    return FAMILIES[config.kind].module(config, dtype, remat, scan)
