"""The task of training a small dual encoder, from scratch or from one that is there."""

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
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.runtimes.devices import compute_dtype
from edje_jax.runtimes.dual_encoder import DualEncoder
from edje_jax.scenes.patch_naming import patch_naming
from edje_jax.training.assemble import open_sets, train_tokenizer
from edje_jax.training.backbone_step import BackboneStepSetup, backbone_train_step
from edje_jax.training.backbone_teacher import BackboneTeacher, TeacherParams, check_teacher
from edje_jax.training.optim import optimiser
from edje_jax.training.processes import part_of_this_process
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state, start_from
from edje_jax.types import Batch, Source
from edje_jax.weights.backbone import Backbone, load_backbone, save_backbone
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.folder import Model, load_model


class BackboneTask:
    """The loss of the dual encoder's family over the batch (SigLIP's sigmoid for a new one), patch
    naming (`scenes.patch_naming`) on built-in scenes, and distillation from an EDJE or
    a captioner."""

    def __init__(self, config: BackboneRun, workdir: Path):
        if config.data.cache_features:
            raise ValueError(
                f"--data.cache-features {config.data.cache_features}: this run changes the"
                " backbone, so what it says cannot be kept; leave the flag out"
            )
        start = load_backbone(config.init) if config.init else None
        config = _as_started(config, start)
        self.config = config
        self.devices = Devices.of(config.mesh, config.data.batch_size)
        self.image = start.image if start else _new_recipe(config)
        teacher = load_model(config.teacher) if config.teacher and config.distillation else None
        if teacher:
            check_teacher(config, teacher, self.image, start)
        source, self.validation = open_sets(config.data, self.image.size)
        self.tokenizer = _tokenizer(config, source, workdir / "tokenizer", start)
        self.backbone = start.config if start else _new_backbone(config, self.tokenizer)
        self.loaded = {self.backbone.kind: start.params} if start else None
        dtype = compute_dtype(config.precision)
        self.model = make_backbone(self.backbone, dtype, config.remat, config.scan_layers)
        self.naming = patch_naming(source, config)
        self.teacher = self.taught_by = None
        if teacher:
            place = self.devices.put
            self.teacher = BackboneTeacher.of(config, teacher, self.devices, dtype)
            self.taught_by = TeacherParams(place(teacher.backbone.params), place(teacher.params))
        per_epoch = max(len(source) // config.data.batch_size, 1)
        steps = config.steps or max(round(config.epochs * per_epoch), 1)
        recipe = RowRecipe(
            self.image,
            self.tokenizer,
            _teacher_tokenizer(teacher) if teacher else None,
            self.naming.labels if self.naming else None,
        )
        self.reader = TrainingBatches(
            source, recipe, config.data, config.seed, steps, part_of_this_process()
        )
        self.optimiser = optimiser(config.optim, steps, per_epoch)

    @property
    def step_flops(self) -> float:
        """0: FLOPs of these small models are not counted."""
        return 0.0

    def init(self) -> TrainState:
        """Fresh parameters from the seed, with those of `init` laid over them."""
        state = self.devices.init_sharded(self._fresh)
        return start_from(state, self.devices.put(self.loaded)) if self.loaded else state

    def _fresh(self) -> TrainState:
        vision, text = self.backbone.vision, self.backbone.text
        keys = jax.random.split(jax.random.key(self.config.seed), 2)
        pixels = jnp.zeros((1, vision.image_size, vision.image_size, 3))
        ids = jnp.zeros((1, text.max_position_embeddings), jnp.int32)
        params = {self.backbone.kind: self.model.init(keys[0], pixels, ids)["params"]}
        if self.naming:
            params["patch_naming"] = self.naming.init(keys[1], vision.hidden_size)
        return init_state(params, self.optimiser, self.config.optim.ema)

    @cached_property
    def _step(self):
        setup = BackboneStepSetup(
            self.model, self.image, self.optimiser, self.naming, self.teacher, self.config.optim.ema
        )
        step = partial(backbone_train_step, setup=setup)
        state = self.devices.shardings(jax.eval_shape(self._fresh))
        return self.devices.jit(
            step, donate_argnums=0, out_shardings=(state, self.devices.replicated)
        )

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, Metrics]:
        """Take one jitted step; `number` makes no difference here."""
        return self._step(state, self.taught_by, self.devices.batch(batch))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Recalls of the dual encoder on `data.val`; {} if there is none."""
        if self.validation is None:
            return {}
        params = self.devices.on_one_device(state.result[self.backbone.kind])
        dual = DualEncoder(self.backbone, self.image, params, self.tokenizer, self.model.dtype)
        found = dual.evaluate(self.validation, self.config.data.max_bad)
        return {f"val/{d}/{name}": value for d in found for name, value in found[d].items()}

    def fetch(self, state: TrainState) -> PyTree[np.ndarray]:
        """The dual encoder's parameters in host memory."""
        return self.devices.fetch(state.result[self.backbone.kind])

    def export(self, params: PyTree[np.ndarray], folder: Path) -> None:
        """A Hugging Face folder of the dual encoder's family."""
        save_backbone(folder, self.backbone, self.image, params, self.tokenizer.folder)


def _as_started(config: BackboneRun, start: Backbone | None) -> BackboneRun:
    """The config of a run with the shapes and the image recipe that it starts from."""
    if start is None:
        return config
    return dataclasses.replace(
        config,
        vision=start.config.vision,
        text=start.config.text,
        icc_profile=start.image.icc_profile,
        transparency=start.image.transparency,
    )


def _new_recipe(config: BackboneRun) -> ImageRecipe:
    return ImageRecipe(
        size=config.vision.image_size,
        icc_profile=config.icc_profile,
        transparency=config.transparency,
    )


def _tokenizer(
    config: BackboneRun, source: Source, folder: Path, start: Backbone | None
) -> BackboneTokenizer:
    """The tokenizer of the dual encoder that a run starts from, or a new one: trained once from the
    captions and kept in a folder."""
    length = config.text.max_position_embeddings
    if start:
        return BackboneTokenizer(start.folder, length, config.text.pad_token_id)
    train_tokenizer(source, config.text.vocab_size, folder)
    return BackboneTokenizer(folder, length)


def _teacher_tokenizer(teacher: Model) -> JointTokenizer:
    config = teacher.config
    return JointTokenizer(teacher.tokenizer, config.max_text_length, config.text_recipe)


def _new_backbone(config: BackboneRun, tokenizer: BackboneTokenizer) -> BackboneConfig:
    """Shape of a SigLIP with the towers of a run."""
    text = dataclasses.replace(
        config.text, vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.pad_id
    )
    return BackboneConfig("siglip", config.vision, text)


TASK = BackboneTask
