"""Training on videos: frames in batches and in kept features, the same steps on any devices.

Covers models/heads/future_predictor.py and training/losses/future_difference.py.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from flax.traverse_util import flatten_dict

import train
from configs.debug import config as debug
from configs.video import config as video
from edje_jax.cli.train import given, without_own_parts
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.config.parts import AdapterSpec, VideoSpec
from edje_jax.config.run import BackboneRun, EdjeRun, LossConfig, MeshConfig
from edje_jax.data.feature_cache import OtherFeatures
from edje_jax.data.images import BadImage
from edje_jax.data.text import JointTokenizer
from edje_jax.models.edje import Edje
from edje_jax.models.heads.future_predictor import FuturePredictor, sinusoids
from edje_jax.models.siglip import Siglip
from edje_jax.scenes.moving import MovingShapes
from edje_jax.training.assemble import assemble
from edje_jax.training.backbone_teacher import BackboneTeacher
from edje_jax.training.edje_step import Frozen, StepSetup, encode, fresh_state, jit_step
from edje_jax.training.feature_pass import FeaturePass
from edje_jax.training.load_checkpoint import load_checkpoint
from edje_jax.training.losses.future_difference import (
    future_difference_loss,
    horizon_of,
    standardised,
)
from edje_jax.training.losses.table import check_terms
from edje_jax.training.losses.term import Objective
from edje_jax.training.sharding import Devices
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.types import Batch, Features, Frames
from edje_jax.weights.folder import load_model
from tests.small_runs import TINY, read_log
from tests.small_runs import trained as trained  # fixture
from tests.training.test_edje_step import CONFIG, MASK, SPECIAL, make_batch

ROWS, FRAMES = 16, 5
FUTURE = LossConfig(negatives=2, future_difference=0.5)
OPTIMISER = optax.adamw(2e-3)


def reading(frames: int) -> EdjeConfig:
    return dataclasses.replace(CONFIG, video=VideoConfig(FrameSampling(frames)))


# --- steps ----------------------------------------------------------------------------------------


def of_videos(batch: Batch, frames: int, seed: int = 0) -> Batch:
    """A batch with further frames behind each image, of which some clips have fewer."""
    rng = np.random.default_rng(seed)
    assert not isinstance(batch.images, Frames) and batch.images is not None
    more = rng.integers(0, 256, (len(batch.valid), frames - 1, 16, 16, 3), np.uint8)
    present = np.ones((len(batch.valid), frames), bool)
    present[2, 1:], present[7, 2:] = False, False
    pixels = np.concatenate([batch.images[:, None], more], axis=1)
    return batch._replace(images=Frames(pixels, present))


def setup_of(config: EdjeConfig, loss: LossConfig, where: Devices, chunks: int = 1) -> StepSetup:
    return StepSetup(
        Objective(Edje(config), loss, "all", MASK, where),
        Siglip(CONFIG.backbone),
        CONFIG.image,
        tuple(SPECIAL),
        seed=3,
        optimiser=OPTIMISER,
        learning_rate=optax.constant_schedule(2e-3),
        chunks=chunks,
    )


@cache
def backbone_params() -> Any:
    pixels, ids = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
    params = jax.jit(Siglip(CONFIG.backbone).init)(jax.random.key(7), pixels, ids)["params"]
    return jax.tree.map(np.asarray, params)


def stepped(
    setup: StepSetup, batches: Sequence[Batch]
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """(what each step tells, the parameters after them)."""
    where, step, told = setup.objective.devices, jit_step(setup), []
    state = where.init_sharded(partial(fresh_state, setup))
    frozen = Frozen(where.put(backbone_params()), None)
    for batch in batches:
        state, metrics = step(state, frozen, where.batch(batch))
        told.append(jax.device_get(metrics))
    return told, where.fetch(state.params)


def test_videos_of_one_frame_train_as_images_do():
    loss, where = LossConfig(negatives=2), Devices.of(MeshConfig(1, 1), ROWS)
    batches = [make_batch(ROWS, seed) for seed in range(2)]
    images, expected = stepped(setup_of(CONFIG, loss, where), batches)
    one_frame = [
        batch._replace(images=Frames(batch.images[:, None], np.ones((ROWS, 1), bool)))
        for batch in batches
    ]
    told, params = stepped(setup_of(reading(1), loss, where), one_frame)
    assert told[0]["loss"] == images[0]["loss"]
    jax.tree.map(np.testing.assert_array_equal, told, images)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_eight_devices_and_chunks_take_the_steps_of_one():
    """With clips of fewer frames, an unreadable one, and the loss of future differences."""
    config, batches = reading(FRAMES), []
    for seed in range(3):
        batch = of_videos(make_batch(ROWS, seed), FRAMES, seed)
        batch.valid[5] = False
        batches.append(batch)
    one, before = stepped(setup_of(config, FUTURE, Devices.of(MeshConfig(1, 1), ROWS)), batches)
    spread = setup_of(config, FUTURE, Devices.of(MeshConfig(2, 4), ROWS, 2), chunks=2)
    eight, after = stepped(spread, batches)
    assert {"loss/future_difference", "loss/match", "loss/masked_lm"} <= one[0].keys()
    for number, (ours, theirs) in enumerate(zip(eight, one, strict=True)):
        for name in theirs:
            rtol = 1e-4 if number else 1e-5
            np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)
    fresh = jax.jit(partial(fresh_state, spread))().params
    assert set(fresh) == {"adapter", "joint_encoder", "future_difference"} == set(after)
    still = [
        path
        for path, leaf in flatten_dict(before["future_difference"], sep="/").items()
        if np.array_equal(leaf, flatten_dict(fresh["future_difference"], sep="/")[path])
    ]
    assert not still, "the predictor is trained along"


# --- the loss of future differences ---------------------------------------------------------------


def test_future_differences_are_errors_of_changes_between_frames_that_are_there():
    rng = np.random.default_rng(0)
    tokens = rng.normal(3, 2, (3, 5, 4, 6)).astype(np.float32)
    tokens[1, 4:], tokens[2, 1:] = 0, 0
    predicted = rng.normal(size=(3, 2, 4, 6)).astype(np.float32)
    mean, deviation = (f(tokens, axis=-1, keepdims=True) for f in (np.mean, np.std))
    known = (tokens - mean) / np.where(deviation, deviation, 1)
    errors = np.square(predicted - (known[:, 3:] - known[:, :2])).mean((2, 3))
    expected = (errors[0].mean() + errors[1, 0] + 0.0) / 3
    valid = np.ones(3, bool)
    found = future_difference_loss(jnp.asarray(predicted), jnp.asarray(tokens), jnp.asarray(valid))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    valid[0] = False
    found = future_difference_loss(jnp.asarray(predicted), jnp.asarray(tokens), jnp.asarray(valid))
    np.testing.assert_allclose(found, errors[1, 0] / 2, rtol=1e-5)
    assert not np.asarray(standardised(jnp.zeros((2, 6)))).any()


def test_the_later_frame_is_as_far_away_as_the_clip_allows():
    assert [horizon_of(reading(frames)) for frames in (2, 3, 4, 8)] == [1, 2, 3, 3]


def test_every_patch_and_horizon_has_a_query_of_its_own():
    queries = sinusoids(np.repeat([1, 2, 3], 64), np.tile(np.arange(64), 3), 15)
    assert queries.shape == (192, 15) and len(np.unique(queries, axis=0)) == 192
    predictor, tokens = FuturePredictor(CONFIG), jnp.ones((2, 3, 16))
    params = predictor.init(jax.random.key(0), tokens, 3)
    found = np.asarray(predictor.apply(params, tokens, 3))
    assert found.shape == (2, CONFIG.backbone.num_vision_tokens, 16)
    assert len(np.unique(found[0], axis=0)) == found.shape[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG, r"^--loss\.future-difference 0\.5: a model of images .* --model\.video\.frames"),
        (reading(1), "one frame has no later one"),
        (
            dataclasses.replace(CONFIG, video=VideoConfig(FrameSampling(4), "mean")),
            r"leave out --model\.video\.pooling mean",
        ),
        (
            dataclasses.replace(
                reading(4),
                joint_encoder=dataclasses.replace(CONFIG.joint_encoder, deferred_layers=1),
            ),
            r"--model\.deferred-layers 0",
        ),
    ],
    ids=["images", "one frame", "pooled", "deferred"],
)
def test_models_that_have_no_later_frame_are_refused_the_loss(config, message):
    with pytest.raises(ValueError, match=message):
        check_terms(FUTURE, config, False)
    check_terms(FUTURE, reading(4), False)


# --- settings -------------------------------------------------------------------------------------


def test_a_run_reads_videos_where_it_says_so_or_starts_from_such_a_model():
    start = VideoConfig(FrameSampling(4, "rate", 2.0), "mean")
    assert VideoSpec().resolve(None) is None
    assert VideoSpec().resolve(start) == start
    assert VideoSpec(frames=3).resolve(None) == VideoConfig(FrameSampling(3))
    assert VideoSpec(by="uniform", pooling="none").resolve(start) == VideoConfig(FrameSampling(4))
    with pytest.raises(
        ValueError, match=r"^--model\.video\.rate 2\.0: frames are chosen by uniform"
    ):
        VideoSpec(rate=2.0).resolve(None)
    for wrong, told in ((dict(frames=0), "frames 0"), (dict(rate=0.0), r"rate 0\.0")):
        with pytest.raises(ValueError, match=rf"--model\.video\.{told}"):
            VideoSpec(**wrong)


def edited(init: Path | None = None, teacher: Path | None = None, **model: Any) -> EdjeRun:
    model = {"backbone": None, "max_text_length": None, "adapter": AdapterSpec(), **model}
    named = {"init": init and str(init), "teacher": teacher and str(teacher)}
    return dataclasses.replace(debug, model=dataclasses.replace(debug.model, **model), **named)


def test_a_model_of_images_goes_on_with_videos(trained, tmp_path, caplog):
    caplog.set_level("INFO")
    before = load_model(str(trained))
    theirs = before.config.joint_encoder.max_position_embeddings
    many = theirs // before.config.num_tokens + 1
    parts = assemble(edited(trained, video=VideoSpec(frames=many)), None, tmp_path)
    assert parts.config.video == VideoConfig(FrameSampling(many))
    assert parts.config.joint_encoder.max_position_embeddings == parts.config.num_positions > theirs
    jax.tree.map(np.testing.assert_array_equal, parts.params["adapter"], before.params["adapter"])
    table, known = (
        params["joint_encoder"]["embeddings"]["position"]["embedding"]
        for params in (parts.params, before.params)
    )
    np.testing.assert_array_equal(table[:theirs], known)

    fewer = edited(trained, video=VideoSpec(frames=4), adapter=AdapterSpec(num_tokens=2))
    adapter = assemble(fewer, None, tmp_path).params["adapter"]
    np.testing.assert_array_equal(adapter["query"], before.params["adapter"]["query"][:, :2])
    assert "with the first 2 of its 8 queries" in caplog.text


def test_the_config_for_videos_goes_on_with_the_parts_of_init(trained, tmp_path):
    before = load_model(str(trained))
    run = dataclasses.replace(without_own_parts(video), init=str(trained))
    parts = assemble(run, None, tmp_path)
    assert parts.backbone.shares_params_of(before.backbone)
    assert parts.config.max_text_length == before.config.max_text_length
    assert (parts.config.frames, parts.config.tokens_per_frame) == (8, 2)
    theirs = before.params["adapter"]
    np.testing.assert_array_equal(parts.params["adapter"]["query"], theirs["query"][:, :2])
    assert given(["video", "--init=runs/mine", "--model.max_text_length", "9"]) == {
        "video", "--init", "--model.max-text-length", "9"
    }  # fmt: skip


def test_a_teacher_of_images_teaches_no_model_of_videos(trained, tmp_path):
    with pytest.raises(ValueError, match=r"reads images, and this run 4 frames, .* of a video"):
        assemble(edited(teacher=trained, video=VideoSpec(frames=4)), None, tmp_path)


def test_a_model_of_videos_teaches_no_dual_encoder(trained):
    model = load_model(str(trained))
    reads_videos = dataclasses.replace(model.config, video=VideoConfig())
    model, one = dataclasses.replace(model, config=reads_videos), Devices.of(MeshConfig(1, 1), ROWS)
    with pytest.raises(ValueError, match=r"^--teacher runs/clips: reads videos"):
        BackboneTeacher.of(BackboneRun(teacher="runs/clips"), model, one, jnp.float32)


def test_the_named_config_reads_the_built_in_clips(tmp_path):
    """Captions of the clips fit, and the backbone is the one that ships with the package."""
    assert video.data.train == "moving-shapes:train"
    parts = assemble(video, None, tmp_path)
    shipped = load_model("shapes-demo")
    assert parts.config.video == VideoConfig(FrameSampling(8))
    assert parts.backbone.shares_params_of(shipped.backbone)
    tokenizer = JointTokenizer(parts.tokenizer, 512)
    clips = MovingShapes("test")
    captions = [caption for i in range(300) for caption in clips.captions(i)]
    longest = np.count_nonzero(tokenizer(captions) != tokenizer.pad_id, axis=1).max()
    assert parts.config.max_text_length >= longest


# --- runs -----------------------------------------------------------------------------------------

STEPS = 4
RUN = (
    "--data.train", "moving-shapes:train", "--data.limit", "24", "--data.batch-size", "8",
    "--model.backbone", str(TINY / "siglip"), "--model.video.frames", "4",
    "--model.adapter.num-tokens", "2", "--loss.future-difference", "1", "--precision", "float32",
    "--mesh.data", "1", "--steps", str(STEPS), "--checkpoint-every", "2", "--data.crop", "0.7",
)  # fmt: skip


def figures(workdir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if not name.endswith("_per_second")}
        for line in read_log(workdir)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The workdir of a finished run on videos; to be read only."""
    workdir = tmp_path_factory.mktemp("videos") / "run"
    assert train.main(["debug", *RUN, "--workdir", str(workdir)]) == 0
    return workdir


@pytest.mark.extra
def test_a_run_on_videos_resumes_bit_for_bit(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir, ignore=shutil.ignore_patterns("model", str(STEPS)))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[:2]))
    assert train.main(["debug", *RUN, "--workdir", str(workdir)]) == 0
    assert figures(workdir) == figures(run) and len(lines) == STEPS
    weights = "model/model.safetensors"
    assert (workdir / weights).read_bytes() == (run / weights).read_bytes()


def test_the_predictor_is_no_part_of_what_is_exported(run):
    model = load_model(str(run))
    assert model.config.video == VideoConfig(FrameSampling(4))
    assert set(model.params) == {"adapter", "joint_encoder"}
    restored, _ = load_checkpoint(run)
    assert restored.config == model.config
    jax.tree.map(np.testing.assert_array_equal, restored.params, model.params)


# --- batches and kept features --------------------------------------------------------------------


class WithBadClip(MovingShapes):
    """Clips of which the third breaks off, the fifth is short, and the eighth is an image."""

    def __len__(self) -> int:
        return 9

    def is_video(self, index: int) -> bool:
        return index != 7

    def frames(self, index: int, sampling: FrameSampling):
        for number, frame in enumerate(super().frames(index, sampling)):
            if index == 2 and number == 1:
                raise BadImage("breaks off")
            if index != 4 or number < 2:
                yield frame


def task_on(source: MovingShapes, folder: Path, *more: str) -> EdjeTask:
    run = tyro.cli(EdjeRun, default=debug, args=[*RUN, "--data.crop", "1", *more])
    task = EdjeTask(run, folder)
    task.reader = dataclasses.replace(task.reader, source=source)
    return task


def test_batches_hold_frames_and_kept_features_are_theirs(tmp_path):
    source = WithBadClip("train", 32)
    task = task_on(source, tmp_path / "work", "--data.block-size", "1")
    batch, bad = task.reader[0]
    assert isinstance(batch.images, Frames) and batch.images.pixels.shape[:2] == (8, 4)
    rows = [task.reader._record(place) for place in range(8)]
    records = [row.record for row in rows]
    expected = [{2: 0, 4: 2, 7: 1}.get(record, 4) for record in records]
    assert batch.images.present.sum(1).tolist() == expected
    assert batch.valid.tolist() == [record != 2 for record in records]
    assert [*bad.values()] == ["breaks off"] * (2 in records)

    data = dataclasses.replace(
        task.config.data, cache_features=str(tmp_path / "kept"), max_bad=0.5, limit=None
    )
    keep = FeaturePass(
        source, data, task.parts.step_backbone, task.backbone_tokenizer, task.backbone,
        task.frozen.backbone, task.devices, jnp.float32, task.sampling,
    )  # fmt: skip
    kept, valid = keep.ensure_cache().rows(rows)
    assert valid.tolist() == batch.valid.tolist()
    seen = jax.jit(partial(encode, task.backbone, recipe=task.model_config.image))(
        task.frozen.backbone, batch=batch
    )
    there = batch.valid
    for name in Features._fields:
        ours, theirs = getattr(kept, name)[there], np.asarray(getattr(seen, name))[there]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=name)
    absent = ~batch.images.present[there]
    assert absent.any() and not kept.vision_tokens[there][absent].any()

    other = dataclasses.replace(keep, sampling=FrameSampling(4, "rate"))
    with pytest.raises(OtherFeatures, match=r"frames: .*uniform.* there, .*rate.* now"):
        other.ensure_cache()
    stamp = json.loads((tmp_path / "kept" / "manifest.json").read_text())["stamp"]
    assert stamp["frames"]["frames"] == 4


def test_all_frames_of_a_clip_have_one_window(tmp_path):
    class Still(MovingShapes):
        def frames(self, index: int, sampling: FrameSampling):
            first = next(super().frames(index, sampling))
            return iter([first] * sampling.frames)

    reader = task_on(Still("train", 32), tmp_path).reader
    whole, _ = reader[0]
    cropped, _ = dataclasses.replace(reader, data=dataclasses.replace(reader.data, crop=0.3))[0]
    assert isinstance(whole.images, Frames) and isinstance(cropped.images, Frames)
    pixels = cropped.images.pixels
    assert (pixels == pixels[:, :1]).all() and (pixels != whole.images.pixels).any()
