"""The task of training a small SigLIP-style dual encoder from scratch."""

import dataclasses
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.config.run import BackboneRun
from edje_jax.data.loader import RowRecipe, TrainingBatches
from edje_jax.data.text import BackboneTokenizer
from edje_jax.models.siglip import Siglip
from edje_jax.runtimes.devices import compute_dtype
from edje_jax.runtimes.dual_encoder import DualEncoder
from edje_jax.scenes.patch_naming import patch_naming
from edje_jax.training.assemble import open_sets, train_tokenizer
from edje_jax.training.backbone_step import backbone_train_step
from edje_jax.training.optim import optimiser
from edje_jax.training.processes import part_of_this_process
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.types import Batch, Source
from edje_jax.weights.backbone import save_backbone


class BackboneTask:
    """Sigmoid loss over the batch, plus patch naming (`scenes.patch_naming`) on built-in scenes."""

    def __init__(self, config: BackboneRun, workdir: Path):
        if config.data.cache_features:
            raise ValueError(
                f"--data.cache-features {config.data.cache_features}: this run changes the"
                " backbone, so what it says cannot be kept; leave the flag out"
            )
        self.config = config
        self.devices = Devices.of(config.mesh, config.data.batch_size)
        vision = config.vision
        self.image = ImageRecipe(
            size=vision.image_size,
            icc_profile=config.icc_profile,
            transparency=config.transparency,
        )
        source, self.validation = open_sets(config.data, vision.image_size)
        tokenizer = self._tokenizer(source, workdir / "tokenizer")
        self.tokenizer = tokenizer
        text = dataclasses.replace(
            config.text, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
        )
        self.backbone = BackboneConfig("siglip", vision, text)
        self.model = Siglip(self.backbone, compute_dtype(config.precision), config.remat)
        self.naming = patch_naming(source, config)
        per_epoch = max(len(source) // config.data.batch_size, 1)
        steps = config.steps or max(round(config.epochs * per_epoch), 1)
        labels = self.naming.labels if self.naming else None
        recipe = RowRecipe(self.image, tokenizer, extra_labels=labels)
        self.reader = TrainingBatches(
            source, recipe, config.data, config.seed, steps, part_of_this_process()
        )
        self.optimiser = optimiser(config.optim, steps, per_epoch)

    @property
    def step_flops(self) -> float:
        """0: FLOPs of these small models are not counted."""
        return 0.0

    def init(self) -> TrainState:
        """Fresh parameters from the seed."""
        return self.devices.init_sharded(self._fresh)

    def _fresh(self) -> TrainState:
        vision, text = self.backbone.vision, self.backbone.text
        keys = jax.random.split(jax.random.key(self.config.seed), 2)
        pixels = jnp.zeros((1, vision.image_size, vision.image_size, 3))
        ids = jnp.zeros((1, text.max_position_embeddings), jnp.int32)
        params = {"siglip": self.model.init(keys[0], pixels, ids)["params"]}
        if self.naming:
            params["patch_naming"] = self.naming.init(keys[1], vision.hidden_size)
        return init_state(params, self.optimiser, self.config.optim.ema)

    @cached_property
    def _step(self):
        step = partial(
            backbone_train_step,
            model=self.model,
            naming=self.naming,
            recipe=self.image,
            optimiser=self.optimiser,
            ema=self.config.optim.ema,
        )
        state = self.devices.shardings(jax.eval_shape(self._fresh))
        return jax.jit(step, donate_argnums=0, out_shardings=(state, self.devices.replicated))

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, Metrics]:
        """Take one jitted step; `number` makes no difference here."""
        return self._step(state, self.devices.batch(batch))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Recalls of the dual encoder on `data.val`; {} if there is none."""
        if self.validation is None:
            return {}
        params = self.devices.on_one_device(state.result["siglip"])
        dual = DualEncoder(self.backbone, self.image, params, self.tokenizer, self.model.dtype)
        found = dual.evaluate(self.validation, self.config.data.max_bad)
        return {f"val/{d}/{name}": value for d in found for name, value in found[d].items()}

    def fetch(self, state: TrainState) -> PyTree[np.ndarray]:
        """The dual encoder's parameters in host memory."""
        return self.devices.fetch(state.result["siglip"])

    def export(self, params: PyTree[np.ndarray], folder: Path) -> None:
        """A Hugging Face `SiglipModel` folder."""
        save_backbone(folder, self.backbone, self.image, params, self.tokenizer.folder)

    def _tokenizer(self, source: Source, folder: Path) -> BackboneTokenizer:
        """The run's tokenizer, trained once from the captions and kept in the workdir."""
        train_tokenizer(source, self.config.text.vocab_size, folder)
        return BackboneTokenizer(folder, self.config.text.max_position_embeddings)


TASK = BackboneTask
