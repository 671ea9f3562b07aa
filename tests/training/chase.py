"""The smallest real task: one number that chases the mean brightness of each batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from edje_jax.config.model import ImageRecipe
from edje_jax.config.run import RunConfig
from edje_jax.data.loader import RowRecipe, TrainingBatches
from edje_jax.data.text import BackboneTokenizer
from edje_jax.training.state import Metrics, TrainState, apply_gradients, init_state
from edje_jax.types import Batch

TINY = Path(__file__).parents[1] / "goldens" / "reference_tiny"


class Greys:
    """Eight images, from black to nearly white."""

    def __len__(self) -> int:
        return 8

    def image_id(self, index: int) -> str:
        return f"grey-{index}"

    def captions(self, index: int) -> tuple[str, ...]:
        return ("cat",)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (4, 4), (30 * index,) * 3)


@dataclass(frozen=True)
class ChaseRun(RunConfig):
    """Options that every training run has, under the name of this task."""

    task: ClassVar[str] = "chase"


class Chase:
    """Loss (number - brightness)^2, under plain gradient descent.

    `nan_at` is the step whose loss is NaN, `ballast` a count of random parameters that only take
    room, and `figures` what evaluations give, one after the other.
    """

    step_flops = 0.0

    def __init__(
        self,
        config: ChaseRun,
        *,
        nan_at: int | None = None,
        ballast: int = 1,
        figures: tuple[dict[str, float], ...] = (),
    ):
        self.config = config
        recipe = RowRecipe(ImageRecipe(size=4), BackboneTokenizer(TINY / "siglip", 8))
        self.reader = TrainingBatches(Greys(), recipe, config.data, config.seed, config.steps)
        self.nan_at = nan_at
        self.ballast = np.random.default_rng(0).normal(size=ballast).astype(np.float32)
        self.figures = list(figures)

    def init(self) -> TrainState:
        params = {"number": jnp.zeros(()), "ballast": jnp.asarray(self.ballast)}
        return init_state(params, optax.sgd(0.3))

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, Metrics]:
        return _step(state, batch.images, number == self.nan_at)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        return self.figures.pop(0) if self.figures else {}

    def fetch(self, state: TrainState) -> dict[str, np.ndarray]:
        return jax.device_get(state.params)

    def export(self, params: dict[str, np.ndarray], folder: Path) -> None:
        np.save(folder / "number.npy", params["number"])
        np.save(folder / "ballast.npy", params["ballast"])


@jax.jit
def _step(state: TrainState, images: jax.Array, broken: jax.Array) -> tuple[TrainState, Metrics]:
    def loss_fn(params):
        error = params["number"] - jnp.mean(images) / 255
        return jnp.where(broken, jnp.nan, error**2)

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return apply_gradients(state, gradients, optax.sgd(0.3)), {"loss": loss}
