"""Models of videos: one frame is the image model, order counts, and what is not there does not.

Covers runtimes/encoding.py.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edje_jax.config.captioner import CaptionerConfig
from edje_jax.config.frames import FrameSampling, VideoConfig
from edje_jax.config.model import (
    AdapterConfig,
    BackboneConfig,
    BertConfig,
    EdjeConfig,
    TextConfig,
    VisionConfig,
)
from edje_jax.data.images import normalise_all
from edje_jax.models.frames import encode_vision, mean_embedding, present_rows
from edje_jax.models.scorers import make_scorer
from edje_jax.models.token_formats import pack, unpack
from edje_jax.runtimes.encoding import encode_batch
from edje_jax.types import Frames
from edje_jax.weights import edje
from edje_jax.weights.families.registry import make_backbone

BERT = BertConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=3,
    max_position_embeddings=60,
)
IMAGES = EdjeConfig(
    BackboneConfig(
        "siglip", VisionConfig(20, 40, 2, 2, 32, 8), TextConfig(50, 20, 40, 1, 2, 16, 20)
    ),
    AdapterConfig("compress", 2, 32),
    BERT,
    max_text_length=12,
)
KINDS = {
    "published": IMAGES,
    "local": replace(IMAGES, adapter=AdapterConfig("local", 0, 32)),
    "deferred": replace(IMAGES, joint_encoder=replace(BERT, deferred_layers=1)),
    "attended": replace(
        IMAGES, joint_encoder=replace(BERT, deferred_layers=1, online_vision="attended")
    ),
    "captioner": replace(IMAGES, captioner=CaptionerConfig()),
}
IDS = jnp.asarray([[2, 7, 9, 11, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0], [2, 4, 5, 6, 7, 8, 3]])


def with_frames(config: EdjeConfig, frames: int, pooling="none") -> EdjeConfig:
    return replace(config, video=VideoConfig(FrameSampling(frames), pooling))


@functools.cache
def weights(kind: str) -> dict:
    """Large random weights of a model; they do not depend on the number of frames."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.normal(0.0, 0.3, leaf.shape).astype(np.float32)
        return value + 1 if path[-1].key == "scale" else value

    return jax.tree_util.tree_map_with_path(draw, edje.expected_params(KINDS[kind]))


def vision(frames: int) -> np.ndarray:
    """Vision tokens [3, frames, n, w] of three videos."""
    shape = (3, frames, *IMAGES.vision_shape)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def scores(kind: str, config: EdjeConfig, tokens: np.ndarray) -> np.ndarray:
    bound = make_scorer(config).bind({"params": weights(kind)})
    return np.asarray(bound.match(IDS, bound.compress(jnp.asarray(tokens))))


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_the_image_model_bit_for_bit(kind):
    images = vision(1)
    expected = scores(kind, KINDS[kind], images[:, 0])
    np.testing.assert_array_equal(scores(kind, with_frames(KINDS[kind], 1), images), expected)


def test_one_frame_of_pixels_is_the_image_bit_for_bit():
    config = with_frames(IMAGES, 1)
    backbone, params = make_backbone(IMAGES.backbone, jnp.float32), None
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    ids = jnp.zeros((1, 16), jnp.int32)
    params = backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), ids)["params"]
    found = [
        encode_batch(backbone, make_scorer(each), each.image, params, weights("published"), images)
        for each, images in (
            (IMAGES, pixels),
            (config, Frames(pixels[:, None], np.ones((3, 1), bool))),
        )
    ]
    for of_image, of_frame in zip(*found, strict=True):
        np.testing.assert_array_equal(of_frame, of_image)


@pytest.mark.parametrize("kind", ["published", "local", "deferred", "attended"])
def test_order_of_frames_changes_a_score(kind):
    config, frames = with_frames(KINDS[kind], 3), vision(3)
    forwards, backwards = scores(kind, config, frames), scores(kind, config, frames[:, ::-1])
    assert np.abs(forwards - backwards).min() > 1e-3


@pytest.mark.parametrize("kind", ["published", "captioner"])
def test_order_of_frames_does_not_change_their_mean_nor_a_captioners_score(kind):
    """A captioner has no positions for what it attends to."""
    pooling = "mean" if kind == "published" else "none"
    config, frames = with_frames(KINDS[kind], 3, pooling), vision(3)
    forwards, backwards = scores(kind, config, frames), scores(kind, config, frames[:, ::-1])
    np.testing.assert_allclose(forwards, backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["none", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_that_are_not_there_never_change_a_score(kind, pooling):
    short, long = (with_frames(KINDS[kind], frames, pooling) for frames in (3, 5))
    frames = vision(3)
    padded = np.concatenate([frames, np.zeros_like(frames[:, :2])], axis=1)
    found, expected = scores(kind, long, padded), scores(kind, short, frames)
    if KINDS[kind].joint_encoder.deferred_layers and pooling == "none":
        # The [SEP] behind the longest video is embedded before it meets one: another model.
        assert np.abs(found - expected).max() > 1e-4
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_missing_frames_stay_missing_in_the_store(dtype):
    config = with_frames(IMAGES, 4)
    frames = vision(4)
    frames[1, 1:] = 0
    bound = make_scorer(config).bind({"params": weights("published")})
    tokens = bound.compress(jnp.asarray(frames))
    stored = jnp.asarray(unpack(pack(np.asarray(tokens), dtype)))
    expected = np.ones((3, 8), bool)
    expected[1, 2:] = False
    np.testing.assert_array_equal(present_rows(config, stored), expected)


def test_pixels_behind_the_last_frame_count_for_nothing():
    backbone = make_backbone(IMAGES.backbone, jnp.float32)
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (2, 3, 32, 32, 3), np.uint8)
    present = np.array([[True, True, False], [True, False, False]])
    ids = jnp.zeros((1, 16), jnp.int32)
    params = backbone.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), ids)["params"]
    bound = backbone.bind({"params": params})
    black = np.where(present[..., None, None, None], pixels, 0)
    one, other = (
        encode_vision(
            bound, normalise_all(Frames(jnp.asarray(each), jnp.asarray(present)), IMAGES.image)
        )
        for each in (pixels, black)
    )
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.embedding, other.embedding)
    assert not one.tokens[~present].any() and np.abs(one.tokens[present]).max() > 0


def test_a_videos_embedding_is_the_mean_of_its_frames():
    rng = np.random.default_rng(4)
    frames = rng.normal(size=(2, 3, 5)).astype(np.float32)
    present = np.array([[True, True, True], [True, True, False]])
    found = np.asarray(mean_embedding(jnp.asarray(frames), jnp.asarray(present)))
    for row, count in enumerate((3, 2)):
        mean = frames[row, :count].mean(axis=0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), rtol=1e-5)
