"""The task of training heads of the first stage on a model that stays as it is.

The training set is encoded once, into an index; a teacher scores the nearest candidates of every
caption and image of it; then the heads learn from embeddings alone, so that large batches cost
little.
"""

import dataclasses
import logging
import math
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from edje_jax.config.calibration import UNTUNED
from edje_jax.config.first_stage_run import FirstStageRun
from edje_jax.evaluate.first_stage import StageChoice, stage_recalls
from edje_jax.evaluate.gallery import EncodedGallery, encode_gallery
from edje_jax.evaluation.tied_ranks import ExpectedRecalls
from edje_jax.index.build import BuildOptions, build
from edje_jax.index.shard_files import BadStore
from edje_jax.index.store import Store
from edje_jax.models.heads.first_stage import FirstStageHeads, fresh_heads
from edje_jax.runtimes.base import Embedded
from edje_jax.runtimes.jax import JaxRuntime
from edje_jax.training.assemble import open_sets
from edje_jax.training.embedding_batches import EmbeddingBatch, EmbeddingBatches, pooled_tokens
from edje_jax.training.first_stage_step import FirstStageSetup, first_stage_train_step
from edje_jax.training.loop import claim_workdir
from edje_jax.training.optim import optimiser, schedule
from edje_jax.training.processes import part_of_this_process, wait_for_all
from edje_jax.training.sharding import Devices
from edje_jax.training.state import Metrics, TrainState, init_state
from edje_jax.training.teacher_scores import Teacher, TeacherScores, averaged, teacher_scores
from edje_jax.types import Source
from edje_jax.weights.card import model_card
from edje_jax.weights.folder import Model, load_model, save_model
from edje_jax.weights.model_stamp import model_stamp

log = logging.getLogger(__name__)

SCALE = 20.0
"""Factor of similarities before their softmax, at the start; it is learned."""


class FirstStageTask:
    """Contrastive losses, and distillation from teachers, as the config weighs them."""

    def __init__(self, config: FirstStageRun, workdir: Path):
        if not config.init:
            raise ValueError("which model are the heads for? Name it: --init MODEL")
        self.config = config
        self.loss = config.loss.with_temperature(len(config.teacher))
        self.devices = Devices.of(config.mesh, config.data.batch_size, config.loss.teacher_stride)
        model = load_model(config.init)
        _check_prior(model, config)
        # Before the work that follows: the workdir may be another run's.
        claim_workdir(config, workdir)
        source, self.validation = open_sets(config.data, model.config.image.size)
        self.heads = config.heads.resolve()
        if self.heads.reads_tokens and model.config.may_miss_frames:
            raise ValueError(
                "--heads.reads-tokens True: the mean of a video's tokens would count frames that"
                " are not there; leave it out"
            )
        self.model = without_heads(model)
        self.runtime = JaxRuntime.of(self.model, config.precision)
        folder = Path(config.index).expanduser() if config.index else workdir / "index"
        self.store = _index(self.runtime, self.model, source, config, folder)
        _check_captions(self.store, config)
        teacher = self._scores(workdir, source) if config.loss.follows_teacher else None
        per_epoch = max(len(self.store) // config.data.batch_size, 1)
        steps = config.steps or max(round(config.epochs * per_epoch), 1)
        self.reader = EmbeddingBatches(
            source, self.store, config.data.batch_size, config.seed, steps,
            pooled_tokens(self.store) if self.heads.reads_tokens else None,
            teacher, config.loss.teacher_stride, part_of_this_process(),
        )  # fmt: skip
        optim = config.optim
        if self.heads.bits:
            # Constants of the training set, which weight decay too shall leave alone.
            optim = dataclasses.replace(optim, lr_scales=("/mean$=0", *optim.lr_scales))
        self.optimiser = optimiser(optim, steps, per_epoch)
        self.learning_rate = schedule(config.optim, steps, per_epoch)

    def _scores(self, workdir: Path, source: Source) -> TeacherScores:
        """Scores of the teachers, of which the model itself is one where no other is named."""
        names = self.config.teacher or (str(self.config.init),)
        found = []
        for number, name in enumerate(names, start=1):
            suffix = f"-{number}" if number > 1 else ""
            teacher = Teacher(self.runtime, self.store)
            if name != self.config.init:
                model = without_heads(load_model(name))
                runtime = JaxRuntime.of(model, self.config.precision)
                folder = workdir / f"teacher-index{suffix}"
                teacher = Teacher(runtime, _index(runtime, model, source, self.config, folder))
            kept = workdir / f"teacher{suffix}"
            found.append(teacher_scores(kept, self.store, teacher, self.config.candidates))
        log.info(
            "distilling from %s at temperature %g; teacher_entropy tells what it leaves",
            ", ".join(names), self.loss.temperature,
        )  # fmt: skip
        return found[0] if len(found) == 1 else averaged(found)

    @property
    def step_flops(self) -> float:
        """0: FLOPs of these small heads are not counted."""
        return 0.0

    def init(self) -> TrainState:
        """Heads that give the backbone's embeddings, and codes by random rotations."""
        return self.devices.init_sharded(partial(self._fresh, self._means))

    def _fresh(self, means: dict[str, np.ndarray]) -> TrainState:
        config = dataclasses.replace(self.model.config, first_stage=self.heads)
        heads = fresh_heads(config, jax.random.key(self.config.seed))
        if self.heads.bits:
            heads = {name: heads[name] | {"mean": jnp.asarray(means[name])} for name in heads}
        start = jnp.asarray(math.log(SCALE), jnp.float32)
        scales = {"embeddings": start}
        if self.heads.bits:
            scales["codes"] = jnp.full((len(self.heads.code_lengths),), start)
        return init_state({"heads": heads, "scales": scales}, self.optimiser, self.config.optim.ema)

    @cached_property
    def _means(self) -> dict[str, np.ndarray]:
        """Means over the training set of the heads' inputs, by modality."""
        image = [np.asarray(self.store.embeddings).mean(axis=0)]
        if self.reader.pooled is not None:
            image.append(self.reader.pooled.mean(axis=0))
        text = np.asarray(self.store.caption_embeddings).mean(axis=0)
        return {"image": np.concatenate(image), "text": text}

    @cached_property
    def _step(self):
        setup = FirstStageSetup(
            self.heads, self.loss, self.devices, self.optimiser, self.learning_rate,
            self.config.optim.ema,
        )  # fmt: skip
        step = partial(first_stage_train_step, setup=setup)
        state = self.devices.shardings(jax.eval_shape(partial(self._fresh, self._means)))
        return jax.jit(step, donate_argnums=0, out_shardings=(state, self.devices.replicated))

    def step(
        self, state: TrainState, batch: EmbeddingBatch, number: int
    ) -> tuple[TrainState, Metrics]:
        """Take one jitted step; `number` makes no difference here."""
        return self._step(
            state, self.devices.put_on_all(batch.pairs), self.devices.batch(batch.taught)
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Recalls on `data.val` by embeddings, the backbone's and the heads', and by codes of every
        length; {} if there is none."""
        if self.validation is None:
            return {}
        heads = FirstStageHeads(self.heads).bind(
            {"params": jax.device_get(self.devices.on_one_device(state.result["heads"]))}
        )
        plain, captions = self._encoded_validation
        tokens = jnp.asarray(plain.tokens) if self.heads.reads_tokens else None
        images = heads.of_images(jnp.asarray(plain.embeddings), tokens)
        moved = dataclasses.replace(
            plain,
            embeddings=np.asarray(images.embeddings),
            projections=np.asarray(images.projections),
        )
        texts = Embedded(*map(np.asarray, heads.of_texts(jnp.asarray(captions.embeddings))))
        figures = _flat("base/", stage_recalls(StageChoice(), plain, captions))
        figures |= _flat("", stage_recalls(StageChoice(), moved, texts))
        for bits in self.heads.code_lengths:
            codes = StageChoice("codes", bits)
            figures |= _flat(f"codes-{bits}/", stage_recalls(codes, moved, texts))
        return figures

    @cached_property
    def _encoded_validation(self) -> tuple[EncodedGallery, Embedded]:
        """`data.val` as the backbone sees it: images, and captions."""
        assert self.validation is not None
        encoded = encode_gallery(self.runtime, self.validation, self.config.data.max_bad)
        return encoded, self.runtime.encode_texts(encoded.gallery.captions)

    def fetch(self, state: TrainState) -> PyTree[np.ndarray]:
        """The heads' parameters in host memory."""
        return self.devices.fetch(state.result["heads"])

    def export(self, params: PyTree[np.ndarray], folder: Path) -> None:
        """The model of --init with the heads, as a model folder."""
        if self.model.calibration != UNTUNED:
            log.info(
                "the calibration of --init %s stays behind, as it was fitted to the backbone's"
                " cosines: run edje tune again", self.config.init,
            )  # fmt: skip
        model = dataclasses.replace(
            self.model,
            config=dataclasses.replace(self.model.config, first_stage=self.heads),
            heads=params,
            calibration=UNTUNED,
            source=str(folder),
        )
        save_model(folder, model, model_card(model, self.config))


def without_heads(model: Model) -> Model:
    """The model with the backbone's own first stage."""
    config = dataclasses.replace(model.config, first_stage=None)
    return dataclasses.replace(model, config=config, heads=None)


def _index(
    runtime: JaxRuntime, model: Model, source: Source, config: FirstStageRun, folder: Path
) -> Store:
    """Index of the training set, made or brought up to date first.

    Raises:
        BadStore: the folder is an index by another model, or of other images than the set's.
        TooManyBadRecords: more records than `data.max_bad` allows are bad.
    """
    log.info("%s: encoding the training set, unless it is there", folder)
    options = BuildOptions(
        share=part_of_this_process(), workers=config.data.workers, max_bad=config.data.max_bad
    )
    if (folder / "manifest.json").exists():
        own = {source.image_id(record) for record in range(len(source))}
        rows = Store(folder).image_of_id
        if foreign := [name for name in rows if name not in own]:
            raise BadStore(
                f"{folder}: has {len(foreign)} images that the training set lacks, such as"
                f" {foreign[0]}; give --index another folder, or delete this one"
            )
    stamp = model_stamp(model.config, runtime.fingerprint(), model.source)
    build(runtime, stamp, source, config.data.train, folder, options)
    wait_for_all(f"index {folder}")
    return Store(folder)


def _check_prior(model: Model, config: FirstStageRun) -> None:
    """Refuse a model whose match head knows the backbone's cosine, which heads would change."""
    if model.config.similarity_prior:
        raise ValueError(
            f"--init {config.init}: has a similarity prior, which was fitted to the backbone's"
            " cosines; heads of the first stage would change its match logits. Train heads for a"
            " model without one"
        )


def _check_captions(store: Store, config: FirstStageRun) -> None:
    """Raise an error if a set has nothing to learn from."""
    if not len(store.captions):
        raise ValueError(
            f"--data.train {config.data.train}: no captions in it, which heads learn from"
        )


def _flat(prefix: str, found: dict[str, ExpectedRecalls]) -> dict[str, float]:
    """{"t2i": recalls} -> {"val/t2i/PREFIX/R@1": percent, ...}"""
    return {
        f"val/{direction}/{prefix}{name}": value
        for direction, each in found.items()
        for name, value in each.recalls.items()
    }


TASK = FirstStageTask
