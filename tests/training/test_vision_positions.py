"""Positions of vision rows where a training begins."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.debug import config as debug
from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import EdjeConfig
from edje_jax.config.parts import AdapterSpec, VideoSpec
from edje_jax.config.run import EdjeRun
from edje_jax.models.edje import Edje
from edje_jax.training.assemble import assemble
from edje_jax.training.tasks.edje import EdjeTask
from edje_jax.training.vision_positions import (
    SIZE,
    KnownFrames,
    frames_apart,
    known_frames,
    measured_size,
    tells_order,
    token_size,
)
from edje_jax.weights.edje import expected_params
from edje_jax.weights.folder import Model, load_model
from tests.small_runs import trained as trained  # fixture
from tests.training.test_edje_step import CONFIG

FRAMES, LONGEST = 4, 12
DEFERRED = dataclasses.replace(
    CONFIG,
    joint_encoder=dataclasses.replace(CONFIG.joint_encoder, deferred_layers=1),
    max_text_length=LONGEST,
    video=VideoConfig(FrameSampling(FRAMES)),
)
EACH, TOKENS = DEFERRED.tokens_per_frame, DEFERRED.num_tokens


def drawn(config: EdjeConfig) -> Any:
    """Parameters of an adapter whose tokens are several times as large as they will be."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32), expected_params(config)
    )
    bias = params["adapter"]["projection"]["bias"]
    params["adapter"]["projection"]["bias"] = (60 * bias).astype(np.float32)
    return params


def vision_tokens(config: EdjeConfig, videos: int = 3) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (videos, *config.vision_shape))


def size(x: Any) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def begun(config: EdjeConfig) -> tuple[Any, Any]:
    """(parameters, those of them that change where a training on videos begins)."""
    params = drawn(config)
    measured = token_size(Edje(config), params, vision_tokens(config))
    return params, frames_apart(config, params, KnownFrames(), measured, seed=0)


def laid_over(params: Any, changed: Any) -> Any:
    if not isinstance(changed, dict):
        return changed
    return {**params, **{name: laid_over(params[name], part) for name, part in changed.items()}}


def test_tokens_become_comparable_with_the_positions_of_frames():
    params, changed = begun(DEFERRED)
    model, tokens = Edje(DEFERRED), vision_tokens(DEFERRED)
    before, after = (
        model.apply({"params": p}, tokens, method=model.adapt)
        for p in (params, laid_over(params, changed))
    )
    assert size(before) > 5 * SIZE
    np.testing.assert_allclose(size(after), SIZE, rtol=1e-5)
    np.testing.assert_allclose(after * size(before) / SIZE, before, rtol=1e-4, atol=1e-4)


def test_frames_that_are_missing_do_not_count():
    params, tokens = drawn(DEFERRED), vision_tokens(DEFERRED)
    whole = token_size(Edje(DEFERRED), params, tokens[:, :1].repeat(FRAMES, axis=1))
    short = token_size(Edje(DEFERRED), params, tokens.at[:, 1:].set(0))
    np.testing.assert_allclose(short, whole, rtol=1e-6)
    assert token_size(Edje(DEFERRED), params, jnp.zeros_like(tokens)) == 0
    wider = jnp.concatenate([tokens, tokens], axis=-1)  # With layers that a teacher reads
    same = token_size(Edje(DEFERRED), params, tokens)
    np.testing.assert_allclose(token_size(Edje(DEFERRED), params, wider), same, rtol=1e-6)


def test_each_frame_has_positions_of_its_own():
    params, changed = begun(DEFERRED)
    before, after = (
        p["joint_encoder"]["embeddings"]["position"]["embedding"] for p in (params, changed)
    )
    own = slice(LONGEST, LONGEST + TOKENS)
    np.testing.assert_array_equal(np.delete(after, own, 0), np.delete(before, own, 0))
    first = before[LONGEST : LONGEST + EACH]
    moves = after[own].reshape(FRAMES, EACH, -1) - first
    assert not moves[0].any()  # A single frame stands where an image does
    np.testing.assert_allclose(moves, np.broadcast_to(moves[:, :1], moves.shape), atol=1e-6)
    assert 0.7 * SIZE < size(moves[1:]) < 1.3 * SIZE


def test_frames_in_another_order_give_other_rows_from_the_start():
    """Correlation of a frame's rows at its place and at the next, as they are before the norm."""
    params, changed = begun(DEFERRED)
    one_frame = vision_tokens(DEFERRED)[:, :1].repeat(FRAMES, axis=1)

    def alike(params: Any) -> float:
        model = Edje(DEFERRED)
        tokens = np.asarray(model.apply({"params": params}, one_frame, method=model.adapt))
        table = params["joint_encoder"]["embeddings"]["position"]["embedding"]
        rows = (tokens + table[LONGEST : LONGEST + TOKENS]).reshape(-1, FRAMES, EACH, 16)
        rows = (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)
        return float(np.mean(rows[:, 0] * rows[:, 1]))

    assert alike(params) > 0.999
    assert alike(laid_over(params, changed)) < 0.95


def test_without_deferred_layers_only_the_tokens_change():
    """Vision rows then stand where words of longer captions do."""
    _, changed = begun(dataclasses.replace(CONFIG, video=DEFERRED.video))
    assert set(changed) == {"adapter"} and set(changed["adapter"]) == {"projection"}


def test_who_tells_the_order_of_frames():
    assert tells_order(DEFERRED)
    assert not tells_order(CONFIG)
    assert not tells_order(dataclasses.replace(CONFIG, video=VideoConfig(FrameSampling(1))))
    assert not tells_order(dataclasses.replace(CONFIG, video=VideoConfig(pooling="mean")))
    assert not tells_order(
        dataclasses.replace(CONFIG, video=DEFERRED.video, captioner=CaptionerConfig())
    )


def read_as(init: EdjeConfig, whole: EdjeConfig, own_encoder: bool = False) -> KnownFrames:
    model = Model(init, {}, None, Path(), "runs/mine")  # type: ignore[arg-type]
    return known_frames(model, whole, own_encoder)


def test_parts_of_a_model_of_videos_go_on_as_they_are():
    adapter = dataclasses.replace(DEFERRED.adapter, num_tokens=5)
    longer = dataclasses.replace(DEFERRED, video=VideoConfig(FrameSampling(9)))
    online = dataclasses.replace(DEFERRED, joint_encoder=CONFIG.joint_encoder)
    assert known_frames(None, DEFERRED, False) == KnownFrames(False, 0)
    assert read_as(dataclasses.replace(DEFERRED, video=None), DEFERRED) == KnownFrames(False, 0)
    assert read_as(DEFERRED, longer) == KnownFrames(True, FRAMES)
    assert read_as(DEFERRED, dataclasses.replace(DEFERRED, adapter=adapter)) == KnownFrames(False)
    assert read_as(online, DEFERRED) == KnownFrames(True, 0)
    assert read_as(DEFERRED, DEFERRED, own_encoder=True) == KnownFrames(True, 0)


def test_frames_that_a_model_of_videos_had_stay_where_they_are():
    params = drawn(DEFERRED)
    (positions,) = jax.tree.leaves(
        frames_apart(DEFERRED, params, KnownFrames(True, FRAMES - 1), 1.0, seed=0)
    )
    before = params["joint_encoder"]["embeddings"]["position"]["embedding"]
    new = slice(LONGEST + TOKENS - EACH, LONGEST + TOKENS)
    np.testing.assert_array_equal(np.delete(positions, new, 0), np.delete(before, new, 0))
    assert size(positions[new] - before[LONGEST : LONGEST + EACH]) > 0.5 * SIZE
    assert frames_apart(DEFERRED, params, KnownFrames(True, FRAMES), 1.0, seed=0) == {}


def of_videos(init: Path | str | None, **model: Any) -> EdjeRun:
    """A run of `debug` on clips, from a trained model."""
    spec = {"backbone": None, "max_text_length": None, "adapter": AdapterSpec(), **model}
    data = dataclasses.replace(debug.data, train="moving-shapes:train", limit=16, batch_size=8)
    model = dataclasses.replace(debug.model, **spec)
    return dataclasses.replace(debug, init=init and str(init), model=model, data=data)


def test_a_run_moves_the_frames_of_a_model_of_images_apart_and_no_others(trained, tmp_path):
    """The model of videos that it makes goes on as it is."""
    video, kept = VideoSpec(frames=3), AdapterSpec(num_tokens=2)
    run = of_videos(trained, video=video, adapter=kept, deferred_layers=1)
    task = EdjeTask(run, tmp_path / "videos")
    params, config = task.fetch(task.init()), task.model_config
    measured = measured_size(
        task.reader, task.backbone, task.parts.backbone.params, config.image, task.model, params
    )
    np.testing.assert_allclose(measured, SIZE, rtol=1e-3)
    table = params["joint_encoder"]["embeddings"]["position"]["embedding"]
    start = config.max_text_length
    assert size(table[start + 2 : start + 4] - table[start : start + 2]) > 0.5 * SIZE
    (tmp_path / "model").mkdir()
    task.export(params, tmp_path / "model")

    again = EdjeTask(of_videos(tmp_path / "model"), tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.fetch(again.init()), params)
    images = EdjeTask(of_videos(trained), tmp_path / "images")
    jax.tree.map(
        np.testing.assert_array_equal,
        images.fetch(images.init()),
        load_model(str(trained)).params,
    )


@pytest.mark.parametrize("pieces", [11, 40])
def test_vision_rows_keep_their_positions_behind_captions_of_another_length(
    trained, tmp_path, pieces
):
    """Scores of captions that fit both stay what they are."""
    (tmp_path / "model").mkdir()
    deferred = EdjeTask(of_videos(trained, deferred_layers=1), tmp_path / "run")
    start = deferred.fetch(deferred.init())
    rng = np.random.default_rng(0)
    start = jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), start)
    deferred.export(start, tmp_path / "model")

    parts = assemble(of_videos(tmp_path / "model", max_text_length=pieces), None, tmp_path)
    assert parts.config.max_text_length == pieces != deferred.model_config.max_text_length
    ids = rng.integers(5, 40, (3, 11))
    tokens = rng.normal(size=(3, *parts.config.vision_shape)).astype(np.float32)

    def scores(config: EdjeConfig, params: Any) -> np.ndarray:
        model = Edje(config)
        bound = model.bind({"params": params})
        return np.asarray(bound.match(jnp.asarray(ids), bound.compress(jnp.asarray(tokens))))

    expected = scores(deferred.model_config, start)
    np.testing.assert_allclose(scores(parts.config, parts.params), expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 1e-2
