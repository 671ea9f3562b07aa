"""The task of training an EDJE or a captioner on a frozen backbone: pre-training, fine-tuning,
distillation."""

import dataclasses
import logging
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from edje_jax.config.model import UNMEASURED, EdjeConfig
from edje_jax.config.run import EdjeRun
from edje_jax.data.feature_cache import FeatureCache
from edje_jax.data.loader import RowRecipe, TrainingBatches
from edje_jax.data.text import BackboneTokenizer, JointTokenizer
from edje_jax.evaluate.gallery import encode_gallery, evaluate
from edje_jax.models.scorers import make_scorer
from edje_jax.runtimes.devices import Compute, compute_dtype
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.training.assemble import AssembledModel, assemble, open_sets
from edje_jax.training.edje_step import Frozen, StepSetup, fresh_state, jit_step
from edje_jax.training.edje_teacher import calibration_of
from edje_jax.training.feature_pass import FeaturePass
from edje_jax.training.losses.table import step_flops, without_heads
from edje_jax.training.losses.term import Objective, Phase
from edje_jax.training.optim import optimiser, schedule
from edje_jax.training.processes import (
    is_first,
    main_process_first,
    part_of_this_process,
    said_by_first,
)
from edje_jax.training.sharding import Devices
from edje_jax.training.similarity_prior import measured_prior
from edje_jax.training.state import Metrics, TrainState, start_from
from edje_jax.training.vision_positions import frames_apart, measured_size, tells_order
from edje_jax.types import Batch, Source
from edje_jax.weights.card import model_card
from edje_jax.weights.families.registry import make_backbone
from edje_jax.weights.folder import Model, save_model
from edje_jax.weights.mapping import to_device

log = logging.getLogger(__name__)


class EdjeTask:
    """Matching, masked LM, text recovery, captioning and distillation, as the config weighs
    them."""

    def __init__(self, config: EdjeRun, workdir: Path):
        _check_negatives(config)
        self.config = config
        parts = config.accumulate * config.loss.auxiliary_stride
        self.devices = Devices.of(config.mesh, config.data.batch_size, parts)
        source, self.validation = open_sets(config.data)
        self.parts: AssembledModel = assemble(config, source, workdir)
        self.model_config: EdjeConfig = self.parts.config
        dtype = compute_dtype(config.precision)
        self.dtype = dtype
        scan = config.scan_layers
        self.backbone = make_backbone(self.parts.step_backbone.config, dtype, scan=scan)
        teacher = self.parts.teacher
        self.teacher = make_scorer(teacher.config, dtype, scan=scan) if teacher else None
        if teacher and config.loss.follows_scores:
            log.info(
                "distilling from %s; teacher_entropy tells what its scores at temperature %g leave",
                config.teacher, config.loss.distillation_temperature,
            )  # fmt: skip
        self.joint_tokenizer = JointTokenizer(
            self.parts.tokenizer, self.model_config.max_text_length, self.model_config.text_recipe
        )
        text = self.model_config.backbone.text
        self.backbone_tokenizer = BackboneTokenizer(
            self.parts.backbone.folder, text.max_position_embeddings, text.pad_token_id
        )
        per_epoch = max(len(source) // config.data.batch_size, 1)
        steps = config.steps or max(round(config.epochs * per_epoch), 1)
        self.optimiser = optimiser(config.optim, steps, per_epoch)
        self.learning_rate = schedule(config.optim, steps, per_epoch)
        place = self.devices.put
        self.frozen = Frozen(
            place(self.parts.backbone.params), place(teacher.params) if teacher else None
        )
        video = self.model_config.video
        self.sampling = video.sampling if video else None
        recipe = RowRecipe(
            self.model_config.image, self.backbone_tokenizer, self.joint_tokenizer,
            frames=self.sampling,
        )  # fmt: skip
        self.reader = TrainingBatches(
            source, recipe, config.data, config.seed, steps, part_of_this_process(),
            self._features(source) if config.data.cache_features else None,
        )  # fmt: skip
        if self.model_config.similarity_prior == UNMEASURED:
            prior = measured_prior(
                workdir, self.reader, self.backbone, self.parts.backbone.params,
                self.model_config.image,
            )  # fmt: skip
            self.model_config = dataclasses.replace(self.model_config, similarity_prior=prior)
        self.model = make_scorer(self.model_config, dtype, config.model.dropout, config.remat, scan)

    def _features(self, source: Source) -> FeatureCache:
        return FeaturePass(
            source,
            self.config.data,
            self.parts.step_backbone,
            self.backbone_tokenizer,
            self.backbone,
            self.frozen.backbone,
            self.devices,
            self.dtype,
            self.sampling,
        ).ensure_cache()

    def init(self) -> TrainState:
        """Fresh parameters from the seed, with what was loaded laid over them."""
        state = self.devices.init_sharded(partial(fresh_state, self._setup("all")))
        state = start_from(state, self.devices.put(self.parts.params))
        return self._with_frames_apart(state) if tells_order(self.model_config) else state

    def _with_frames_apart(self, state: TrainState) -> TrainState:
        """State of a run on videos that has taken no step, see `training.vision_positions`."""
        parts, size = self.parts, 0.0
        params = without_heads(self.devices.fetch(state.params))
        with main_process_first("size of tokens"):
            if is_first():
                size = measured_size(
                    self.reader, self.backbone, parts.backbone.params, self.model_config.image,
                    self.model, params,
                )  # fmt: skip
        size = said_by_first(size)
        if not size:  # Nothing can be read, and the run is about to tell what and why
            return state
        changed = frames_apart(
            self.model_config, params, parts.known_frames, size, self.config.seed
        )
        return start_from(state, self.devices.put(changed)) if changed else state

    def _setup(self, phase: Phase) -> StepSetup:
        loss, mask_id = self.config.loss, self.joint_tokenizer.mask_id
        return StepSetup(
            Objective(
                self.model,
                loss,
                phase,
                mask_id,
                self.devices,
                self.teacher,
                calibration_of(self.parts.teacher),
            ),
            self.backbone,
            self.model_config.image,
            self.joint_tokenizer.special_ids,
            self.config.seed,
            self.optimiser,
            self.learning_rate,
            self.config.optim.ema,
            self.config.accumulate,
        )

    @property
    def step_flops(self) -> float:
        """FLOPs of a step that trains every part."""
        config, loss, data = self.model_config, self.config.loss, self.config.data
        teacher, cached = self.parts.teacher, bool(data.cache_features)
        taught = teacher.config if teacher else None
        return step_flops(config, loss, data.batch_size, taught, cached)

    @cached_property
    def _steps(self):
        return {phase: jit_step(self._setup(phase)) for phase in ("masked_lm", "all")}

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, Metrics]:
        """Step `number`: of masked LM alone at first if the config says so, else of everything."""
        alone = number < self.config.loss.masked_lm_first * len(self.reader)
        step = self._steps["masked_lm" if alone else "all"]
        return step(state, self.frozen, self.devices.batch(batch))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Base and reranked recalls on `data.val`; {} if there is none."""
        if self.validation is None:
            return {}
        one = self.devices.count == 1
        runtime = JaxRuntime(
            self.model_config,
            self.devices.on_one_device(without_heads(state.result)),
            self.frozen.backbone if one else to_device(self.parts.backbone.params),
            self.joint_tokenizer,
            self.backbone_tokenizer,
            Compute(self.dtype),
            Compute(self.dtype),
            devices=self.devices.local_devices,
            heads=to_device(self.parts.heads),
        )
        encoded = encode_gallery(runtime, self.validation, self.config.data.max_bad)
        metrics = evaluate(runtime, encoded, self.config.k).metrics()
        return {
            f"val/{direction}/{name}": value
            for direction in ("t2i", "i2t")
            for name, value in _flat(metrics[direction]).items()
        }

    def fetch(self, state: TrainState) -> PyTree[np.ndarray]:
        """The trained parameters in host memory."""
        return self.devices.fetch(without_heads(state.result))

    def export(self, params: PyTree[np.ndarray], folder: Path) -> None:
        """A model folder."""
        parts = self.parts
        model = Model(
            self.model_config, params, parts.backbone, parts.tokenizer, str(folder),
            heads=parts.heads,
        )  # fmt: skip
        save_model(folder, model, model_card(model, self.config))


def _check_negatives(config: EdjeRun) -> None:
    """Raise an error if a batch and the queue hold too few rows for all negatives, or if a teacher
    would have to score images of the queue."""
    loss, batch = config.loss, config.data.batch_size
    asked = f"--loss.negatives {loss.negatives}"
    if loss.random_negatives:
        asked += f" and --loss.random-negatives {loss.random_negatives}"
    if (loss.hardest_of or 0) > loss.all_negatives:
        asked = f"--loss.hardest-of {loss.hardest_of}"
    most = max(loss.hardest_of or 0, loss.all_negatives)
    if most >= batch + loss.queue:
        where = f"batches of {batch}" + (f" and a queue of {loss.queue}" if loss.queue else "")
        raise ValueError(
            f"{asked} cannot be found in {where}; raise --data.batch-size above {most - loss.queue}"
        )
    if loss.queue and config.teacher and loss.follows_scores:
        raise ValueError(
            f"--loss.queue {loss.queue} with --teacher {config.teacher}: the queue keeps no tokens"
            " of a teacher, which could not score its images; leave one of them out, or set"
            " --loss.distillation and --loss.listwise-distillation to 0"
        )


def _flat(direction: dict) -> dict[str, float]:
    """{"R@1": reranked, "base/R@1": base, "ceiling": ...}"""
    base = {f"base/{name}": value for name, value in direction["base"].items()}
    return {**direction["reranked"], **base, "ceiling": direction["ceiling"]}


TASK = EdjeTask
