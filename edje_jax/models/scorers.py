"""Models that score pairs, by the kind that a config names. A further kind is one line here."""

import jax
import jax.numpy as jnp

from edje_jax.config.model import EdjeConfig, ModelKind
from edje_jax.models.captioner import Captioner
from edje_jax.models.edje import Edje
from edje_jax.models.pair_scorer import PairScorer

SCORERS: dict[ModelKind, type[PairScorer]] = {"edje": Edje, "captioner": Captioner}


def make_scorer(
    config: EdjeConfig,
    dtype: jax.typing.DTypeLike = jnp.float32,
    dropout: float = 0.0,
    remat: bool = False,
    scan: bool = False,
) -> PairScorer:
    """The model of a config, as a pure function of its parameters."""
    return SCORERS[config.kind](config, dtype, dropout, remat, scan)
