"""The task of training a small SigLIP-style dual encoder from scratch."""

import dataclasses
import logging
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import BackboneConfig, ImageRecipe
from edje_jax.config.run import BackboneRun
from edje_jax.data.loader import Encoder, TrainingBatches
from edje_jax.data.text import BackboneTokenizer
from edje_jax.models.siglip import Siglip
from edje_jax.models.towers import unit_length
from edje_jax.runtimes.devices import compute_dtype
from edje_jax.runtimes.dual_encoder import DualEncoder
from edje_jax.training.assemble import open_sets, train_tokenizer
from edje_jax.training.backbone_step import backbone_train_step
from edje_jax.training.optim import optimiser
from edje_jax.training.processes import part_of_this_process
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.types import Batch, PatchLabelled, Source
from edje_jax.weights.backbone import save_backbone

log = logging.getLogger(__name__)


class PatchNaming(nn.Module):
    """Heads that name what a patch holds and where it stands; dropped after training.

    Where patches are embedded linearly, the contrastive loss alone learns colour and size, no
    shape and no place: a bag of words needs neither. Logits are cosines times `sharpness`, so
    that a head cannot amplify a faint trace: what is named must fill a good part of the token,
    the larger the less sharp, where an adapter and a joint encoder find it as easily.
    """

    sizes: Sequence[int]
    """Names of each attribute."""
    sharpness: Sequence[float]
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


class BackboneTask:
    """Sigmoid loss over the batch, plus patch naming where the source can tell."""

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
        self.heads: dict[str, nn.Module] = {}
        grid = vision.image_size // vision.patch_size
        if config.patch_naming > 0 and isinstance(source, PatchLabelled):
            if config.data.crop < 1:
                raise ValueError(
                    f"--data.crop {config.data.crop}: what patches hold is told of whole pictures;"
                    " set it to 1, or --patch-naming to 0"
                )
            self.heads["patch_naming"] = PatchNaming(
                (*source.patch_label_sizes, grid, grid), config.patch_sharpness
            )
        elif config.patch_naming > 0:
            log.info("%s cannot say what patches hold: no patch naming", config.data.train)
        per_epoch = max(len(source) // config.data.batch_size, 1)
        steps = config.steps or max(round(config.epochs * per_epoch), 1)
        encoder = Encoder(self.image, tokenizer, patch_grid=grid if self.heads else 0)
        self.reader = TrainingBatches(
            source, encoder, config.data, config.seed, steps, part_of_this_process()
        )
        self.optimiser = optimiser(config.optim, steps, per_epoch)

    @property
    def step_flops(self) -> float:
        """Not counted: these models are small."""
        return 0.0

    def init(self) -> TrainState:
        """Fresh parameters from the seed."""
        return self.devices.make(self._fresh)

    def _fresh(self) -> TrainState:
        vision, text = self.backbone.vision, self.backbone.text
        keys = jax.random.split(jax.random.key(self.config.seed), 2)
        pixels = jnp.zeros((1, vision.image_size, vision.image_size, 3))
        ids = jnp.zeros((1, text.max_position_embeddings), jnp.int32)
        params = {"siglip": self.model.init(keys[0], pixels, ids)["params"]}
        tokens = jnp.zeros((1, vision.num_patches, vision.hidden_size))
        for name, head in self.heads.items():
            params[name] = head.init(keys[1], tokens)["params"]
        return init_state(params, self.optimiser, self.config.optim.ema)

    @cached_property
    def _step(self):
        step = partial(
            backbone_train_step,
            model=self.model,
            heads=self.heads,
            weights={"sigmoid": 1.0, "patch_naming": self.config.patch_naming},
            recipe=self.image,
            optimiser=self.optimiser,
            ema=self.config.optim.ema,
        )
        state = self.devices.shardings(jax.eval_shape(self._fresh))
        return jax.jit(step, donate_argnums=0, out_shardings=(state, self.devices.whole))

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, Metrics]:
        """Take one jitted step; `number` makes no difference here."""
        return self._step(state, self.devices.batch(batch))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Recalls of the dual encoder on `data.val`; {} if there is none."""
        if self.validation is None:
            return {}
        params = self.devices.alone(state.result["siglip"])
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
